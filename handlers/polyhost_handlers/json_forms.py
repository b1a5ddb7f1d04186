"""
Every JSON form in which clients send a table, with the names of its columns where the form has any.

Of the built-in algorithms, pandas, MLflow, TensorFlow Serving, Seldon and the Open Inference Protocol.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyhost_handlers import exact
from polyhost_handlers.errors import BadInput, NoContent, Unparseable
from polyhost_handlers.tables import (
    MAX_NAMES_SHOWN,
    MAX_SPARSE_CELLS,
    Schema,
    SparseRow,
    Table,
    arranged,
    check_equal,
    listed,
)

# By which names rows, features and values lie in an object, the outermost first.
_WRAPPERS = ("instances", "inputs", "data", "features", "values")
# By which the names of the columns lie beside them.
_NAMES = ("columns", "names", "feature_names")


def table_of(document: Any, names: Collection[str] = ()) -> Table:
    """
    The table in any of the JSON forms that clients send.

    Rows: `[[1, 2], …]`, `[1, 2]`, `{"instances": […]}`, `{"inputs": …}`, `{"features": […]}`,
    `{"data": {"features": {"values": […]}}}`, sparse `{"keys", "shape", "values"}`.
    With names: `{"columns", "data"}`, `{"dataframe_split"}`, `{"dataframe_records"}`, records `[{"a": 1}, …]`,
    columns `{"a": [1, …]}`, Seldon's `{"data": {"names", "ndarray"}}`, Open Inference Protocol's tensors.
    An object whose names are among the model's, `names`, is a record or columns whatever they are called.
    """
    try:
        table = _table(document, frozenset(names))
    except RecursionError as error:
        raise Unparseable("The JSON is nested too deeply.") from error
    check_equal(table.rows, table.unit, table.first)
    return table


def _table(document: Any, known: frozenset[str]) -> Table:
    if isinstance(document, Mapping):
        return _table_of_object(document, known)
    if not isinstance(document, list):
        raise Unparseable(f"A JSON {type(document).__name__} is not rows: send [[…], …].")
    if not document:
        raise NoContent("The request has no rows.")
    if isinstance(document[0], Mapping):
        tensors = tensors_of(document)
        if tensors is not None:
            return _table_of_tensors(tensors, known)
        if all(isinstance(item, Mapping) and not _is_wrapper(item, known) for item in document):
            return _table_of_records(document)
        return _joined([_table(item, known) for item in document])
    if isinstance(document[0], list):
        return Table(document)
    return Table([document], is_flat=True)


def _table_of_object(document: Mapping[str, Any], known: frozenset[str]) -> Table:
    if "dataframe_split" in document or "dataframe_records" in document:
        name = "dataframe_split" if "dataframe_split" in document else "dataframe_records"
        inner = document[name]
        is_as_named = isinstance(inner, Mapping if name == "dataframe_split" else list)
        if not is_as_named or (isinstance(inner, Mapping) and not {"columns", "data"} <= set(inner)):
            raise Unparseable(f'"{name}" is not what pandas writes with orient="{name.removeprefix("dataframe_")}".')
        return _table(inner, known)
    if isinstance(document.get("columns"), list) and isinstance(document.get("data"), list):
        return _named_rows(document["columns"], document["data"], known)
    if "names" in document and ("ndarray" in document or "tensor" in document):
        names = document["names"] if document["names"] is not None else []
        return _named_rows(names, _seldons_rows(document), known)
    if "ndarray" in document or (isinstance(document.get("tensor"), Mapping) and len(document) == 1):
        return _table(_seldons_rows(document), known)
    if _is_wrapper(document, known):
        wrapper = next((name for name in _WRAPPERS if name in document and _may_hold_rows(document, name)), None)
        if wrapper is None:
            raise Unparseable('The names of columns came without rows: send {"columns": […], "data": [[…], …]}.')
        table = _values_row(document) if wrapper == "values" else _table(document[wrapper], known)
        names = next((document[key] for key in _NAMES if isinstance(document.get(key), list)), None)
        return table if names is None else _named(names, table, known)
    if not document:
        raise Unparseable('The JSON object has no "instances": send {"instances": [[…], …]} or [[…], …].')
    if all(isinstance(value, (list, Mapping)) for value in document.values()):
        return _table_of_columns(document)
    return _table_of_records([document])


def _is_wrapper(document: Mapping[str, Any], known: frozenset[str]) -> bool:
    """Whether rows lie in it, and not values by their columns' names."""
    if known and (document.keys() <= known or (document.keys() & known) - {*_WRAPPERS, *_NAMES, "ndarray"}):
        return False
    return any(name in document and _may_hold_rows(document, name) for name in (*_WRAPPERS, "columns", "ndarray"))


def _may_hold_rows(document: Mapping[str, Any], name: str) -> bool:
    return isinstance(document[name], (list, Mapping)) or len(document) == 1 or "keys" in document


def _seldons_rows(data: Mapping[str, Any]) -> Any:
    if "ndarray" in data:
        return data["ndarray"]
    tensor = data["tensor"]
    if not isinstance(tensor, Mapping):
        raise Unparseable('A tensor needs "shape" and "values".')
    return _shaped("tensor", tensor.get("values"), tensor.get("shape")).tolist()


def _named_rows(names: Any, rows: Any, known: frozenset[str]) -> Table:
    if not isinstance(names, list):
        raise Unparseable("The names of the columns are not a list of texts.")
    return _named(names, _table(rows, known), known)


def _named(names: list[Any], table: Table, known: frozenset[str]) -> Table:
    if not all(isinstance(name, (str, int, float)) for name in names):
        raise Unparseable("The names of the columns are not a list of texts.")
    if table.is_flat and len(names) == 1:
        table = Table([[value] for value in table.rows[0]])
    # Without names pandas counts its columns.
    if not names or (names == list(range(len(names))) and not {str(name) for name in names} & known):
        return table
    if table.names is None:
        table = replace(table, names=tuple(str(name) for name in names), is_flat=False)
    if len(names) != table.width:
        raise Unparseable(f"There are {len(names)} names for {table.width} columns.")
    return table


def _table_of_records(records: Sequence[Mapping[str, Any]]) -> Table:
    names = tuple(records[0])
    if not names:
        raise Unparseable("Row 1 is an empty object: send a value for each column.")
    rows = []
    for number, record in enumerate(records, 1):
        if record.keys() != records[0].keys():
            less = [name for name in names if name not in record]
            more = [name for name in record if name not in records[0]]
            words = f"lacks {listed(less)}" if less else f"has also {listed(more)}"
            raise BadInput(f"Row {number} {words}, which differs from row 1: send the same names in each row.")
        rows.append([record[name] for name in names])
    return Table(rows, names, has_order=len(names) == 1)


def _table_of_columns(document: Mapping[str, Any]) -> Table:
    """`{"a": [1, 2], "b": [3, 4]}`, or what pandas writes if it is not told how: `{"a": {"0": 1, "1": 2}, …}`."""
    columns: list[Any] = list(document.values())
    if isinstance(columns[0], Mapping):
        index = list(columns[0])
        if not all(isinstance(column, Mapping) and column.keys() == columns[0].keys() for column in columns):
            raise Unparseable('The JSON object has no "instances", and its columns differ in their rows.')
        columns = [[column[key] for key in index] for column in columns]
    lengths = [len(column) if isinstance(column, list) else -1 for column in columns]
    if len(set(lengths)) > 1 or lengths[0] < 0:
        raise Unparseable('The JSON object has no "instances", and its columns differ in length.')
    if not lengths[0]:
        raise NoContent("The request has no rows.")
    return Table([list(row) for row in zip(*columns, strict=True)], tuple(document), has_order=len(columns) == 1)


@dataclass(frozen=True)
class Tensor:
    name: str
    array: np.ndarray[Any, Any]  # of numbers, or of objects as they were sent
    datatype: str = ""


def tensors_of(document: Any) -> list[Tensor] | None:
    """The Open Inference Protocol's tensors, `[{"name", "shape", "datatype", "data"}, …]`; None if these are none."""
    if not isinstance(document, list) or not document:
        return None
    for item in document:
        if not isinstance(item, Mapping) or not {"name", "data"} <= item.keys():
            return None
        if "shape" not in item and "datatype" not in item:
            return None
    return [_tensor_of(str(item["name"]), item) for item in document]


def _tensor_of(name: str, item: Mapping[str, Any]) -> Tensor:
    return Tensor(name, _shaped(name, item["data"], item.get("shape")), str(item.get("datatype")))


def _shaped(name: str, data: Any, shape: Any) -> np.ndarray[Any, Any]:
    try:
        array = np.array(data, dtype=object)
        if shape is not None:
            array = array.reshape([int(size) for size in shape if int(size) >= 0])
    except (TypeError, ValueError, OverflowError) as error:
        raise Unparseable(f"The data of tensor {name[:60]} has not its shape: {exact.shown(shape)}.") from error
    if not array.size:
        raise NoContent("The request has no rows.")
    if shape is not None and array.ndim != len(shape):
        raise Unparseable(f"The shape of tensor {name[:60]} holds something else than sizes.")
    return array


def _table_of_tensors(tensors: Sequence[Tensor], known: frozenset[str]) -> Table:
    """One tensor holds all rows; several hold a column each."""
    first = tensors[0].array
    if len(tensors) == 1 and tensors[0].name not in known:
        if first.ndim == 0:
            first = first.reshape(1)
        return Table([first.tolist()], is_flat=True) if first.ndim == 1 else Table(first.tolist())
    columns = [tensor.array[:, 0] if tensor.array.shape[1:] == (1,) else tensor.array for tensor in tensors]
    if any(column.ndim != 1 or len(column) != len(columns[0]) for column in columns):
        shapes = ", ".join(f"{tensor.name[:60]} {list(tensor.array.shape)}" for tensor in tensors[:MAX_NAMES_SHOWN])
        raise BadInput(f"Several tensors are a column each, of shape [rows] or [rows, 1]; sent were {shapes}.")
    names = tuple(tensor.name for tensor in tensors)
    matrix = _matrix_of(columns)
    if matrix is not None:
        return Table(matrix, names)
    rows = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    return Table(rows, names)


def _matrix_of(columns: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any] | None:
    """Columns of one kind of number, whole or not, as one array; None for others, which stay what they are."""
    kinds = {kind for column in columns for kind in set(map(type, column))}
    if kinds not in ({int}, {float}):
        return None
    try:
        return np.stack(columns, axis=1).astype(np.int64 if kinds == {int} else float)
    except OverflowError:
        return None


def table_of_lines(documents: Sequence[Any], names: Collection[str] = ()) -> Table:
    """JSON Lines: each line a row in any of the forms, all with the same names."""
    if all(isinstance(item, Mapping) for item in documents):
        table = replace(table_of(documents if isinstance(documents, list) else list(documents), names), is_flat=False)
    elif all(isinstance(item, (str, int, float)) for item in documents):
        table = Table([[item] for item in documents])
    else:
        table = _joined([table_of(item, names) for item in documents])
        check_equal(table.rows, "Line")
    return replace(table, unit="Line")


def records_of(document: Any) -> list[dict[str, Any]]:
    """Records for models that take them as they are: objects of any names, each with its own."""
    while isinstance(document, Mapping):
        wrapper = next((name for name in ("instances", "inputs", "dataframe_records") if name in document), None)
        document = [document] if wrapper is None else document[wrapper]
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise Unparseable('The model takes records: send JSON, [{"name": value, …}, …].')
    if not document:
        raise NoContent("The request has no rows.")
    return document


def _joined(tables: Sequence[Table]) -> Table:
    names = tables[0].names
    if any((table.names is None) != (names is None) or set(table.names or ()) != set(names or ()) for table in tables):
        raise BadInput("The rows differ in the names of their columns: send the same names with each.")
    if names is not None:
        tables = [arranged(table, Schema(names=names)) for table in tables]
    return Table(
        [row for table in tables for row in table.lists], names, has_order=all(one.has_order for one in tables)
    )


def _values_row(document: Mapping[str, Any]) -> Table:
    values = document["values"]
    if "keys" not in document:
        if not isinstance(values, list):
            raise Unparseable(f"Row 1 is a {type(values).__name__}, not a list: send rows of fields.")
        return Table([values], is_flat=True)
    try:
        keys = [exact.whole(key, np.dtype("int64")) for key in document["keys"]]
        width = int(document["shape"][0]) if document.get("shape") else max(keys, default=-1) + 1
        row = SparseRow(keys, [exact.number(value) for value in values], width)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise Unparseable(f"A sparse row needs keys, shape and values, all numbers: {error}.") from error
    if not 0 < width <= MAX_SPARSE_CELLS:
        raise Unparseable(f"A sparse row of {width} features is not supported.")
    if len(set(keys)) < len(keys):
        raise Unparseable("A sparse row has a key twice.")
    if len(keys) != len(row.values) or not all(0 <= key < width for key in keys):
        raise Unparseable(f"A sparse row needs as many values as keys, and keys from 0 to {width - 1}.")
    return Table([row])
