"""
Loading a booster from any generation of XGBoost's artifacts.

Native formats (UBJSON, JSON, old binary) go to XGBoost as they are, once they are seen to be whole. Of a pickle
only the booster's own bytes are taken: XGBoost itself refuses pickles from before 1.0, and no code in a pickle is
run. What these bytes are has changed: until 0.90 the old binary format, since 1.0 a snapshot of model and
configuration that only `__setstate__` reads.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyhost_handlers.artifacts import is_pickle
from polyhost_handlers.errors import load_errors_named
from polyhost_handlers.xgboost_binary import SNAPSHOT_MARK, check_binary
from polyhost_handlers.xgboost_document import check_document

# How the snapshots of 1.0, of 1.3 and of 1.7 and later begin.
_SNAPSHOTS = (SNAPSHOT_MARK, b'{"Config":', b"{L\0\0\0\0\0\0\0\x06Config")


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
    An `xgboost.Booster` that predicts on one thread. Its `kind`, our own attribute, is gbtree, dart or gblinear.

    Raises LoadFailed or MemoryError.
    """
    data = path.read_bytes()
    with load_errors_named(f"{path.name} is not a readable XGBoost model", len(data)):
        return _booster_of(_pickled_booster(data) if is_pickle(data) else data)


def _booster_of(data: bytes) -> Any:
    from xgboost.core import _LIB

    with _silence(_LIB):
        kind = _checked(data)
        if data.startswith(_SNAPSHOTS):
            data = _model_in(data)
            kind = _checked(data)
        booster = _loaded(data)
    booster.kind = kind
    return booster


def _checked(data: bytes) -> str:
    return check_document(data) if data.startswith(b"{") else check_binary(data)


def _model_in(snapshot: bytes) -> bytes:
    """Out of the snapshot into a document: the trainer's threads and devices stay behind."""
    import xgboost

    booster = xgboost.Booster.__new__(xgboost.Booster)
    booster.__setstate__({"handle": bytearray(snapshot)})
    return bytes(booster.save_raw("ubj"))


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


class _StandIn:
    """In place of any object in a pickle: inert, keeps only its state."""

    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:  # noqa: PYI034 - Self is Python 3.11's
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """An item of a dictionary that nobody reads."""


class _BoosterStandIn(_StandIn):
    pass


def _reconstructor(cls: Any, *_: Any) -> _StandIn:
    """`copyreg._reconstructor`, which protocols 0 and 1 call for every object."""
    if isinstance(cls, type) and issubclass(cls, _StandIn):
        return cls()
    raise pickle.UnpicklingError("not a model object")


_PYTHON_2_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _Unpickler(pickle.Unpickler):
    """Makes stand-ins of all objects, and bytes: no more of them than the pickle itself has, however often it asks."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self._bytes_left = 2 * len(data)

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("builtins", "bytearray"): self._bytearray,
            ("builtins", "object"): object,
            ("copyreg", "_reconstructor"): _reconstructor,
            ("_codecs", "encode"): self._encode,
            ("collections", "OrderedDict"): _StandIn,
            ("xgboost.core", "Booster"): _BoosterStandIn,
        }
        found = known.get((_PYTHON_2_NAMES.get(module, module), name))
        if found is not None:
            return found
        if module.partition(".")[0] in ("xgboost", "numpy", "sklearn"):
            return _StandIn
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no model of XGBoost's does")

    def _bytearray(self, content: bytes | str = b"", encoding: str = "latin-1") -> bytearray:
        """Of bytes or text only: of a number it would be so many bytes."""
        return bytearray(self._encode(content, encoding) if isinstance(content, str) else self._counted(content))

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        """`_codecs.encode`, by which protocols 0 to 2 write bytes."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("unexpected encoding")
        return self._counted(text.encode("latin-1"))

    def _counted(self, content: bytes) -> bytes:
        self._bytes_left -= len(content)
        if self._bytes_left < 0 or not isinstance(content, (bytes, bytearray)):
            raise pickle.UnpicklingError("it makes more bytes than it has")
        return content


def _pickled_booster(data: bytes) -> bytes:
    """The bytes of the booster in a pickled `Booster` or scikit-learn wrapper."""
    _check_opcodes(data)
    model = _Unpickler(data).load()
    if isinstance(model, _StandIn) and not isinstance(model, _BoosterStandIn):
        model = _member(model, "_Booster")
    handle = _member(model, "handle") if isinstance(model, _BoosterStandIn) else None
    if not isinstance(handle, (bytes, bytearray)):
        raise pickle.UnpicklingError("it holds no trained booster")
    return bytes(handle)


def _check_opcodes(data: bytes) -> None:
    """Ten bytes of pickle can make Python reserve gigabytes for its memo; a real one numbers what it has."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name.endswith("PUT") and isinstance(argument, int) and argument > len(data):
            raise pickle.UnpicklingError(f"it numbers an object {argument}")


def _member(model: _StandIn, name: str) -> Any:
    return model.state.get(name) if isinstance(model.state, dict) else None
