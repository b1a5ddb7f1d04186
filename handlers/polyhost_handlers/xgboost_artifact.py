"""
Loading a booster from any generation of XGBoost's artifacts.

Native formats (UBJSON, JSON, old binary) go to XGBoost as they are, once they are seen to be whole. Of a pickle
only the booster's own bytes are taken. What these are has changed: until 0.90 the old binary format, since 1.0 a
snapshot of model and configuration, of which the model is taken: the trainer's threads and devices stay behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from polyhost_handlers.artifacts import is_old_binary, is_pickle
from polyhost_handlers.compression import uncompressed
from polyhost_handlers.errors import LoadFailed, is_out_of_memory, load_errors_named, sentence_of
from polyhost_handlers.xgboost_binary import BINARY_MARK, check_binary, release_of_binary
from polyhost_handlers.xgboost_document import read_document, release_of_document
from polyhost_handlers.xgboost_pickle import pickled_booster
from polyhost_handlers.xgboost_releases import (
    NEWEST_KNOWN,
    WRITES_AS_NOW,
    Learner,
    Release,
    starts_of,
    with_gamma_parameters,
    written,
)
from polyhost_handlers.xgboost_ubjson import BrokenModel, end_of_value

# How the snapshots of 1.0, of 1.3 and of 1.7 and later begin, and how the model in the last one does.
_OLD_SNAPSHOT = b"CONFIG-offset:"
_JSON_SNAPSHOT = b'{"Config":'
_UBJSON_SNAPSHOT = b"{L\0\0\0\0\0\0\0\x06Config"
_UBJSON_MODEL = b"L\0\0\0\0\0\0\0\x05Model"


class Written(NamedTuple):
    """A model in UBJSON, and what was read of it."""

    data: bytes
    document: Any


@contextlib.contextmanager
def _silence(library: Any) -> Iterator[None]:
    """Old formats are worth no warning to a server that exists to read them. The setting is per thread."""
    config = ctypes.c_char_p()
    library.XGBGetGlobalConfig(ctypes.byref(config))
    before = config.value
    library.XGBSetGlobalConfig(b'{"verbosity": 0}')
    try:
        yield
    finally:
        library.XGBSetGlobalConfig(before)


def load_booster(path: Path) -> Any:
    """
    An `xgboost.Booster` that predicts on one thread.

    Four attributes are our own: its `kind` is gbtree, dart or gblinear; its `release` wrote it; its `starts` are what
    each row's prediction begins with, shape (outputs,), or None where XGBoost knows it; and of `written`, where it is
    not None, XGBoost would write the same trees. Raises LoadFailed or MemoryError.
    """
    data = path.read_bytes()
    what = f"{path.name} is not a readable XGBoost model"
    with load_errors_named(what, len(data)):
        data = data if is_old_binary(data) else uncompressed(data)
    with load_errors_named(what, len(data)):
        model = _model_in(data)
        with _newer_releases_named(path.name, model):
            return _booster_of(model)


def _model_in(data: bytes) -> bytes:
    """A model in UBJSON, JSON or the old binary format, out of whatever wraps it."""
    if not is_old_binary(data) and is_pickle(data):
        data = pickled_booster(data)
    if data.startswith(_OLD_SNAPSHOT):
        begin = len(_OLD_SNAPSHOT) + 8
        (count,) = struct.unpack_from("<Q", data, len(_OLD_SNAPSHOT))
        json.loads(data[begin + count :])  # that it is whole
        data = data[begin : begin + count]
    elif data.startswith(_JSON_SNAPSHOT):
        text = data.decode()
        _, end = json.JSONDecoder().raw_decode(text, len(_JSON_SNAPSHOT))
        before, model, rest = text[end:].partition('"Model":')
        if before.strip() != "," or not model or not rest.endswith("}"):
            raise BrokenModel("its snapshot holds no model")
        data = rest[:-1].encode()
    elif data.startswith(_UBJSON_SNAPSHOT):
        end = end_of_value(data, len(_UBJSON_SNAPSHOT))
        if not data.startswith(_UBJSON_MODEL, end) or not data.endswith(b"}"):
            raise BrokenModel("its snapshot holds no model")
        data = data[end + len(_UBJSON_MODEL) : -1]
    # Numbers begin the old binary format, and may look like a bracket.
    if data.startswith(BINARY_MARK) or (data.startswith(b"{") and not is_old_binary(data)):
        return data
    return BINARY_MARK + data


def _is_document(model: bytes) -> bool:
    return model.startswith(b"{")


@contextlib.contextmanager
def _newer_releases_named(name: str, model: bytes) -> Iterator[None]:
    """What a newer release has written, and the installed one cannot read, is told by both their versions."""
    try:
        yield
    except Exception as error:
        release, installed = _release_of_model(model), installed_release()
        if is_out_of_memory(error) or release[:2] <= installed[:2]:
            raise
        raise LoadFailed(
            f"Unable to load model: {name} is of XGBoost {written(release)}, newer than XGBoost {written(installed)} "
            f"here, which cannot read it: {sentence_of(error)}. "
            f"Train it with XGBoost {written(installed[:2])} or an earlier one.",
        ) from error


def release_of(data: bytes) -> Release:
    """The release that wrote a model or a snapshot, () where it does not tell. Raises what a broken one may raise."""
    return _release_of_model(_model_in(data))


def _release_of_model(model: bytes) -> Release:
    return release_of_document(model) if _is_document(model) else release_of_binary(model)


def installed_release() -> Release:
    import xgboost

    return tuple(int(number) for number in xgboost.__version__.split(".")[:3] if number.isdigit())


def _booster_of(data: bytes) -> Any:
    from xgboost.core import _LIB

    with _silence(_LIB):
        learner, document = _checked(data)
        if learner.release[:2] > max(NEWEST_KNOWN, installed_release()[:2]):
            raise BrokenModel(f"models of releases after {written(NEWEST_KNOWN)} may be computed differently")
        if learner.objective == "reg:gamma":
            amended = with_gamma_parameters(data)
            if amended != data:
                data, (learner, document) = amended, _checked(amended)
        booster = _loaded(data)
        if learner.lacks_rounds:
            booster, document = _with_rounds_counted(booster), None
    booster.kind = learner.booster
    booster.release = learner.release
    booster.starts = starts_of(learner)
    is_as_now = document is not None and learner.release >= WRITES_AS_NOW
    booster.written = Written(data, document) if is_as_now else None
    return booster


def _checked(data: bytes) -> tuple[Learner, Any]:
    return read_document(data) if _is_document(data) else (check_binary(data), None)


def _loaded(data: bytes) -> Any:
    """
    A configured booster.

    Through the C API, as `Booster({"nthread": 1}).load_model(bytearray(data))` does it at a higher price. From memory
    the format is told by content; of a path, XGBoost believes the suffix.
    """
    import xgboost
    from xgboost.core import _LIB, _check_call

    handle = ctypes.c_void_p()
    _check_call(_LIB.XGBoosterCreate(None, ctypes.c_uint64(0), ctypes.byref(handle)))
    booster = xgboost.Booster.__new__(xgboost.Booster)
    booster.handle = handle
    _check_call(_LIB.XGBoosterSetParam(handle, b"nthread", b"1"))
    _check_call(_LIB.XGBoosterLoadModelFromBuffer(handle, data, ctypes.c_uint64(len(data))))
    booster.num_features()  # configures it: what does not fit together is an error of the load, not of a request
    return booster


def _with_rounds_counted(booster: Any) -> Any:
    """A model without trees, once more from the old binary format: of it, XGBoost counts the rounds itself."""
    counted = _loaded(bytes(booster.save_raw("deprecated")))
    counted.feature_names = booster.feature_names  # which the old format leaves out
    return counted
