"""
The booster's own bytes in a pickle or a dump of joblib's, without running the pickle.

XGBoost itself refuses pickles from before 1.0, and a pickle is code. All objects become inert stand-ins here.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from typing import Any, ClassVar


def pickled_booster(data: bytes) -> bytes:
    """
    What the pickled `Booster`, or the one of a scikit-learn wrapper, keeps as its `handle`.

    Raises pickle.UnpicklingError, or what else a broken pickle makes Python raise.
    """
    model = _Unpickler(io.BytesIO(data), _Budget(2 * len(data))).load()
    if isinstance(model, _StandIn) and not isinstance(model, _BoosterStandIn):
        model = _member(model, "_Booster")
    handle = _member(model, "handle") if isinstance(model, _BoosterStandIn) else None
    if not isinstance(handle, (bytes, bytearray)):
        raise pickle.UnpicklingError("it holds no trained booster")
    return bytes(handle)


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


class _ArrayStandIn(_StandIn):
    """joblib's NumpyArrayWrapper: the array's bytes follow it in the file, between two opcodes."""


class _TypeStandIn(_StandIn):
    """numpy.dtype: keeps its name."""

    name = ""

    def __new__(cls, name: Any = "", *_: Any, **__: Any) -> _TypeStandIn:  # noqa: PYI034
        made = object.__new__(cls)
        made.name = name if isinstance(name, str) else ""
        return made


def _member(model: _StandIn, name: str) -> Any:
    return model.state.get(name) if isinstance(model.state, dict) else None


def _reconstructor(cls: Any, *_: Any) -> _StandIn:
    """`copyreg._reconstructor`, which protocols 0 and 1 call for every object."""
    if isinstance(cls, type) and issubclass(cls, _StandIn):
        return cls()
    raise pickle.UnpicklingError("not a model object")


_PYTHON_2_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_PLAIN_TYPE = re.compile(r"[<>=|]?([biufSU])(\d{1,9})")


class _Budget:
    """Bytes that a pickle may make: no more than it has, however often it asks."""

    def __init__(self, count: int) -> None:
        self._left = count

    def take(self, content: Any) -> Any:
        self._left -= len(content)
        if self._left < 0 or not isinstance(content, (bytes, bytearray)):
            raise pickle.UnpicklingError("it makes more bytes than it has")
        return content


# Python's own: C's does not let joblib's arrays be stepped over.
_PythonUnpickler: Any = pickle._Unpickler  # noqa: SLF001


class _Unpickler(_PythonUnpickler):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, stream: io.BytesIO, budget: _Budget) -> None:
        super().__init__(stream, encoding="latin-1")
        self._stream = stream
        self._budget = budget

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("builtins", "bytearray"): self._bytearray,
            ("builtins", "object"): object,
            ("copyreg", "_reconstructor"): _reconstructor,
            ("_codecs", "encode"): self._encode,
            ("collections", "OrderedDict"): _StandIn,
            ("xgboost.core", "Booster"): _BoosterStandIn,
            ("numpy", "dtype"): _TypeStandIn,
            ("joblib.numpy_pickle", "NumpyArrayWrapper"): _ArrayStandIn,
            ("sklearn.externals.joblib.numpy_pickle", "NumpyArrayWrapper"): _ArrayStandIn,
        }
        found = known.get((_PYTHON_2_NAMES.get(module, module), name))
        if found is not None:
            return found
        if module.partition(".")[0] in ("xgboost", "numpy", "sklearn"):
            return _StandIn
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no model of XGBoost's does")

    def _bytearray(self, content: bytes | str = b"", encoding: str = "latin-1") -> bytearray:
        """Of bytes or text only: of a number it would be so many bytes."""
        return bytearray(self._encode(content, encoding) if isinstance(content, str) else self._budget.take(content))

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        """`_codecs.encode`, by which protocols 0 to 2 write bytes."""
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("unexpected encoding")
        content: bytes = self._budget.take(text.encode("latin-1"))
        return content

    def load_build(self) -> None:
        """Only of stand-ins: what else is here belongs to this process."""
        if not isinstance(self.stack[-2], _StandIn):
            raise pickle.UnpicklingError("it gives a state to what has none")
        super().load_build()
        if isinstance(self.stack[-1], _ArrayStandIn):
            self._step_over(self.stack[-1].state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        """Python's own reserves first and reads then."""
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(count)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def _step_over(self, array: Any) -> None:
        """The bytes of an array as joblib's NumpyArrayWrapper writes them."""
        dtype, shape = array["dtype"].name, array["shape"]
        if "O" in dtype:
            _Unpickler(self._stream, self._budget).load()
            return
        plain = _PLAIN_TYPE.fullmatch(dtype)
        if plain is None:
            raise pickle.UnpicklingError(f"it holds an array of {dtype}")
        if array.get("numpy_array_alignment_bytes") is not None:
            self._stream.read(self._stream.read(1)[0])
        item_bytes = int(plain[2]) * (4 if plain[1] == "U" else 1)
        count = math.prod(shape) * item_bytes
        if min(shape, default=0) < 0 or len(self._stream.read(count)) != count:
            raise pickle.UnpicklingError("it ends within an array")
