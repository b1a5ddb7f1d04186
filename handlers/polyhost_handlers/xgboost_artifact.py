"""
Loading a booster from any generation of XGBoost's artifacts.

Native formats (UBJSON, JSON, old binary) go to XGBoost as they are. Of a pickle only the booster's own bytes
are taken: XGBoost itself refuses pickles from before 1.0, and no code in a pickle is run. What these bytes are
has changed: until 0.90 the old binary format, since 1.0 a snapshot of model and configuration that only
`__setstate__` reads.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

from polyhost_handlers.artifacts import is_pickle
from polyhost_handlers.errors import LoadFailed, is_out_of_memory

# How the snapshots of 1.0, of 1.3 and of 1.7 and later begin.
_SNAPSHOTS = (b"CONFIG-offset:", b'{"Config":', b"{L\0\0\0\0\0\0\0\x06Config")


def load_booster(path: Path) -> Any:
    """An `xgboost.Booster` that predicts on one thread. Raises LoadFailed or MemoryError."""
    data = path.read_bytes()
    try:
        return _booster_of(_pickled_booster(data) if is_pickle(data) else bytearray(data))
    except LoadFailed as error:
        raise LoadFailed(f"Unable to load model: {path.name}: {error.message}") from error
    except Exception as error:
        # XGBoostError; UnicodeDecodeError when its text is garbled; whatever a broken pickle makes Python do.
        if is_out_of_memory(error) and _memory_is_short(len(data)):
            raise MemoryError(str(error)) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise LoadFailed(f"Unable to load model: {path.name} is not a readable XGBoost model: {reason}") from error


def _memory_is_short(artifact_bytes: int) -> bool:
    """
    Whether memory is short indeed: a damaged file also makes XGBoost ask for absurd amounts.

    No booster needs this much for a byte of its artifact; the pages are asked for, not touched.
    """
    try:
        bytearray(artifact_bytes * 64 + 16 * 1024**2)
    except MemoryError:
        return True
    return False


def _booster_of(data: bytearray) -> Any:
    import xgboost

    # Old formats are worth no warning to a server that exists to read them. The setting is per thread.
    with xgboost.config_context(verbosity=0):
        if data.startswith(_SNAPSHOTS):
            snapshot = xgboost.Booster.__new__(xgboost.Booster)
            snapshot.__setstate__({"handle": data})
            # Out of the snapshot into a fresh booster: the trainer's threads and devices stay behind.
            data = snapshot.save_raw("ubj")
        booster = xgboost.Booster({"nthread": 1})
        # From memory the format is told by content; of a path, XGBoost believes the suffix.
        booster.load_model(data)
    return booster


class _StandIn:
    """In place of any object in a pickle: inert, keeps only its state."""

    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _BoosterStandIn(_StandIn):
    pass


def _reconstructor(cls: Any, *_: Any) -> _StandIn:
    """`copyreg._reconstructor`, which protocols 0 and 1 call for every object."""
    if isinstance(cls, type) and issubclass(cls, _StandIn):
        return cls()
    raise pickle.UnpicklingError("not a model object")


def _bytearray(*arguments: Any) -> bytearray:
    if arguments and not isinstance(arguments[0], (bytes, str)):
        raise pickle.UnpicklingError("not bytes")  # bytearray(10**12) would take all memory
    return bytearray(*arguments)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode`, by which protocols 0 to 2 write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("unexpected encoding")
    return text.encode("latin-1")


_GLOBALS: dict[tuple[str, str], Any] = {
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "object"): object,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("xgboost.core", "Booster"): _BoosterStandIn,
}
_PYTHON_2_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _GLOBALS.get((_PYTHON_2_NAMES.get(module, module), name))
        if known is not None:
            return known
        if module.partition(".")[0] in ("xgboost", "numpy", "sklearn"):
            return _StandIn
        raise LoadFailed(f"the pickle names {module}.{name}, which no XGBoost model does; it was not loaded.")


def _pickled_booster(data: bytes) -> bytearray:
    """The bytes of the booster in a pickled `Booster` or scikit-learn wrapper."""
    model = _Unpickler(io.BytesIO(data), encoding="latin-1").load()
    if isinstance(model, _StandIn) and not isinstance(model, _BoosterStandIn):
        model = (model.state or {}).get("_Booster")
    state = model.state if isinstance(model, _BoosterStandIn) else None
    handle = (state or {}).get("handle")
    if not isinstance(handle, (bytes, bytearray)):
        raise LoadFailed("the pickle holds no trained XGBoost model.")
    return bytearray(handle)
