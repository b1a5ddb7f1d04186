"""What a model's inputs declare, and what a request gives each of them: shared by the handlers of networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyhost_handlers import exact, json_forms, tables
from polyhost_handlers.errors import BadInput, NoContent, Unparseable

Shape = Sequence[int | str | None]

# Of the Open Inference Protocol; its texts, BYTES, stay as they were sent.
_DATATYPES = {
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BOOL": np.dtype(bool),
}
_FLOAT32 = np.dtype("float32")


@dataclass(frozen=True)
class Spec:
    """One input. `dtype`: object for text. Both are None where the model does not tell; so are free dimensions."""

    name: str
    dtype: np.dtype[Any] | None = None
    shape: Shape | None = None

    @property
    def width(self) -> int | None:
        """How many fields a row has, where the model tells."""
        if self.shape is None or len(self.shape) not in (1, 2):
            return None
        last = self.shape[-1] if len(self.shape) == 2 else 1
        return last if isinstance(last, int) else None


def by_name(document: Any, specs: Sequence[Spec]) -> dict[str, Any]:
    """
    What JSON gives each input: by names, as records, as tensors of the Open Inference Protocol, or as lists alone.

    Raises BadInput.
    """
    names = [spec.name for spec in specs]
    if isinstance(document, Mapping):
        tensors = json_forms.tensors_of(document.get("inputs"))
        if tensors is not None:
            return _of_tensors(tensors, names)
        wrapper = next((word for word in ("inputs", "instances") if word in document and word not in names), None)
        document = document if wrapper is None else document[wrapper]
    if isinstance(document, Mapping):
        return checked(document, names)
    if is_records(document):
        return of_records(document, names)
    if len(names) > 1:
        raise BadInput(f'The model has several inputs: send JSON {{"inputs": {{name: rows}}}} with {", ".join(names)}.')
    return {names[0]: document}


def is_records(document: Any) -> bool:
    return isinstance(document, list) and bool(document) and all(isinstance(item, Mapping) for item in document)


def of_records(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Objects with a value for each input: one object is a row. Raises BadInput."""
    for number, record in enumerate(records, 1):
        if record.keys() != records[0].keys():
            raise BadInput(f"Row {number} has other names than row 1: send the same names in each row.")
    checked(records[0], names)
    return {name: [record[name] for record in records] for name in names}


def checked(named: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """In the order of the inputs. Raises BadInput where one is missing, or is none of the model's."""
    missing = [name for name in names if name not in named]
    unknown = [str(name) for name in named if name not in names]
    if missing:
        raise BadInput(f'Inputs are missing: {tables.listed(missing)}; send {{"inputs": {{name: rows}}}}.')
    if unknown:
        raise BadInput(f"The model has no inputs {tables.listed(unknown)}: its inputs are {', '.join(names)}.")
    return {name: named[name] for name in names}


def _of_tensors(tensors: Sequence[json_forms.Tensor], names: Sequence[str]) -> dict[str, Any]:
    doubled = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    if doubled:
        raise BadInput(f"Inputs are there more than once: {tables.listed(doubled)}.")
    given = {tensor.name: _of_tensor(tensor) for tensor in tensors}
    if len(names) == len(given) == 1:  # whatever the client calls it
        return {names[0]: next(iter(given.values()))}
    return checked(given, names)


def _of_tensor(tensor: json_forms.Tensor) -> Any:
    dtype = _DATATYPES.get(tensor.datatype)
    return tensor.array if dtype is None else exact.array_of(tensor.array, dtype)


def fitted(
    values: Any, spec: Spec, unit: str = "Row", first: int = 1, *, has_free_rows: bool = True
) -> np.ndarray[Any, Any]:
    """
    `values` with the dtype and the shape of an input; free dimensions may be any size.

    Where the model does not tell its dtype, an array of numbers keeps its own and all else becomes float32.
    Raises BadInput and Unparseable.
    """
    is_array = isinstance(values, np.ndarray) and values.dtype.kind in "biuf"
    dtype = spec.dtype or (values.dtype if is_array else _FLOAT32)
    try:
        array = exact.array_of(values, dtype, unit, first)
    except Unparseable:
        raise
    except BadInput as error:
        raise BadInput(f"Input {spec.name} takes {_words(dtype)}. {error.message}") from error
    if not array.size:
        raise NoContent("The request has no rows.")
    return array if spec.shape is None else shaped(array, spec.name, spec.shape, has_free_rows=has_free_rows)


def _words(dtype: np.dtype[Any]) -> str:
    return "text" if dtype.kind == "O" else str(dtype)


def shaped(array: np.ndarray[Any, Any], name: str, shape: Shape, *, has_free_rows: bool = True) -> np.ndarray[Any, Any]:
    """
    An array as an input's shape wants it, with a dimension more or fewer where that is enough. Raises BadInput.

    `has_free_rows`: the first dimension counts rows, however many the model says that it takes.
    """
    array = _ranked(array, len(shape), is_column=len(shape) == 2 and shape[1] == 1)
    if array.ndim != len(shape) or not _fits(array.shape[has_free_rows:], shape[has_free_rows:]):
        raise BadInput(f"Input {name} has shape {_shown(shape)}, the request {_shown(array.shape)}.")
    return array


def _ranked(array: np.ndarray[Any, Any], rank: int, *, is_column: bool) -> np.ndarray[Any, Any]:
    """With one dimension more or fewer, where that makes it `rank`. `is_column`: each row takes one value."""
    if array.ndim == 1 and is_column:
        return array[:, np.newaxis]  # a value a row
    if array.ndim == rank - 1:
        return array[np.newaxis, ...]
    if array.ndim == rank + 1 and array.shape[-1] == 1:
        return array[..., 0]  # a column of CSV
    return array


def _fits(got: Sequence[int], shape: Shape) -> bool:
    return not any(isinstance(wanted, int) and wanted != size for wanted, size in zip(shape, got, strict=True))


def _shown(shape: Shape) -> str:
    return "[" + ", ".join(str(size) if isinstance(size, int) else "any" for size in shape) + "]"
