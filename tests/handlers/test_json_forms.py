"""Every JSON form of a table: its rows and names, what is no table, and what a form may not be mistaken for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from polyhost_handlers.errors import BadInput, HandlerError, NoContent
from polyhost_handlers.json_forms import table_of, table_of_lines
from polyhost_handlers.tables import Schema, arranged

AB = ("a", "b")
ROWS = [[1, 2], [3, 4]]
RECORDS = [{"a": 1, "b": 2}, {"b": 4, "a": 3}]


def tensor(name: str, shape: Any, data: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": "FP64", "data": data}


@pytest.mark.parametrize(
    ("document", "names", "rows"),
    [
        (ROWS, None, ROWS),
        ([1, 2], None, [[1, 2]]),
        ({"instances": ROWS}, None, ROWS),
        ({"instances": ROWS, "signature_name": "x"}, None, ROWS),
        ({"instances": [{"features": [1, 2]}, {"features": [3, 4]}]}, None, ROWS),
        ({"instances": [{"data": {"features": {"values": [1, 2]}}}, {"features": [3, 4]}]}, None, ROWS),
        ({"inputs": ROWS, "parameters": {}}, None, ROWS),
        ({"data": {"ndarray": ROWS}, "meta": {}}, None, ROWS),
        ({"data": {"tensor": {"shape": [2, 2], "values": [1, 2, 3, 4]}}}, None, ROWS),
        # pandas counts columns that have no names.
        ({"columns": [0, 1], "index": [0, 1], "data": ROWS}, None, ROWS),
        ({"columns": ["a", "b"], "index": [0, 1], "data": ROWS}, AB, ROWS),
        ({"dataframe_split": {"columns": ["a", "b"], "data": ROWS}}, AB, ROWS),
        ({"columns": [7, 8], "data": ROWS}, ("7", "8"), ROWS),
        ({"columns": ["a"], "data": [1, 2]}, ("a",), [[1], [2]]),
        ({"data": {"names": ["a", "b"], "ndarray": ROWS}}, AB, ROWS),
        ({"data": {"names": [], "ndarray": ROWS}}, None, ROWS),
        ({"data": {"names": ["a", "b"], "tensor": {"shape": [2, 2], "values": [1, 2, 3, 4]}}}, AB, ROWS),
        (RECORDS, AB, ROWS),
        ({"instances": RECORDS}, AB, ROWS),
        ({"inputs": RECORDS}, AB, ROWS),
        ({"data": RECORDS}, AB, ROWS),
        ({"dataframe_records": RECORDS}, AB, ROWS),
        (RECORDS[0], AB, ROWS[:1]),
        ({"a": [1, 3], "b": [2, 4]}, AB, ROWS),
        ({"inputs": {"a": [1, 3], "b": [2, 4]}}, AB, ROWS),
        ({"a": {"0": 1, "1": 3}, "b": {"1": 4, "0": 2}}, AB, ROWS),
        ({"inputs": [tensor("a", [2], [1, 3]), tensor("b", [2, 1], [2, 4])]}, AB, ROWS),
        ({"inputs": [tensor("x", [2, 2], [1, 2, 3, 4])]}, None, ROWS),
        ({"inputs": [tensor("x", [2, 2], ROWS)]}, None, ROWS),
        ({"inputs": [tensor("x", [2], [1, 2])]}, None, [[1, 2]]),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_rows_and_their_names(document: Any, names: tuple[str, ...] | None, rows: list[list[int]]) -> None:
    """What built-in algorithms, pandas, MLflow, TensorFlow Serving, Seldon and the Open Inference Protocol send."""
    table = table_of(document)

    assert (table.names, table.lists) == (names, rows)


@pytest.mark.parametrize("name", ["data", "features", "values", "instances", "inputs", "columns", "keys", "name"])
def test_a_column_may_be_called_as_a_wrapper_is(name: str) -> None:
    """Where the model knows such a column, an object of the model's names alone is a record."""
    known = (name, "b")

    for document in ([{"b": 2, name: 1}], {"b": 2, name: 1}, {"b": [2], name: [1]}, {"b": {"0": 2}, name: {"0": 1}}):
        assert arranged(table_of(document, known), Schema(2, known)).rows == [[1, 2]]


def test_a_tensor_that_is_a_column_by_its_name() -> None:
    """One tensor of a model of one feature."""
    table = table_of({"inputs": [tensor("a", [3], [1, 2, 3])]}, ("a",))

    assert (table.names, table.lists) == (("a",), [[1], [2], [3]])


@pytest.mark.parametrize(
    ("documents", "names", "rows"),
    [
        ([[1, 2], [3, 4]], None, ROWS),
        ([[1, 2], {"features": [3, 4]}], None, ROWS),
        (RECORDS, AB, ROWS),
        ([{"columns": ["a", "b"], "data": [[1, 2]]}, {"columns": ["b", "a"], "data": [[4, 3]]}], AB, ROWS),
        (["x", "y"], None, [["x"], ["y"]]),
    ],
)
def test_lines(documents: list[Any], names: tuple[str, ...] | None, rows: list[list[int]]) -> None:
    """A row each, in any of the forms, the names in any order."""
    table = table_of_lines(documents)

    assert (table.names, table.rows, table.unit) == (names, rows, "Line")


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (5, "A JSON int is not rows"),
        ("a", "A JSON str is not rows"),
        ({}, 'no "instances"'),
        ([{}], "Row 1 is an empty object"),
        ([[1], 2], "Row 2 is a int, not a list"),
        ([{"a": 1}, {"b": 1}], "Row 2 lacks a, which differs from row 1"),
        ([{"a": 1}, {"a": 1, "b": 1}], "Row 2 has also b"),
        ([{"a": 1}, [1]], "differ in the names"),
        ({"a": [1, 2], "b": [1]}, "its columns differ in length"),
        ({"a": {"0": 1}, "b": {"1": 1}}, "its columns differ in their rows"),
        ({"columns": ["a"], "data": ROWS}, "There are 1 names for 2 columns."),
        ({"columns": [["a"], "b"], "data": ROWS}, "not a list of texts"),
        ({"data": {"names": 5, "ndarray": ROWS}}, "not a list of texts"),
        ({"data": {"names": ["a"], "tensor": 5}}, 'A tensor needs "shape" and "values"'),
        ({"data": {"tensor": {"shape": [3], "values": [1, 2]}}}, "has not its shape"),
        ({"dataframe_split": [1]}, '"dataframe_split" is not what pandas writes with orient="split"'),
        ({"dataframe_records": {"a": 1}}, 'orient="records"'),
        ({"inputs": [tensor("x", [3, 2], [1, 2])]}, "The data of tensor x has not its shape"),
        ({"inputs": [tensor("x", [-1, 2], [1, 2])]}, "not its shape|something else than sizes"),
        ({"inputs": [tensor("x", ["a"], [1, 2])]}, "has not its shape"),
        ({"inputs": [tensor("x", [1e999], [1, 2])]}, "has not its shape"),
        ({"inputs": [tensor("a", [2], [1, 2]), tensor("b", [1], [1])]}, "Several tensors are a column each"),
        ({"inputs": [tensor("a", [1, 2], [1, 2]), tensor("b", [1, 2], [1, 2])]}, "sent were a .1, 2., b .1, 2."),
        ({"a": 1, "b": {"features": [1]}}, ""),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_is_no_table(document: Any, sentence: str) -> None:
    """A sentence, or a row whose field is refused when it is read."""
    if not sentence:
        assert table_of(document).rows == [[1, {"features": [1]}]]
        return
    with pytest.raises(BadInput, match=sentence):
        table_of(document)


@pytest.mark.parametrize(
    "document", [[], {"instances": []}, {"a": [], "b": []}, {"inputs": [tensor("x", [0, 10**18], [])]}]
)
def test_no_rows(document: Any) -> None:
    """Nothing was asked."""
    with pytest.raises(NoContent):
        table_of(document)


@pytest.mark.parametrize(
    ("sent", "its", "optional", "right"),
    [
        (("b", "a"), AB, (), [[2, 1]]),
        (("a", "b"), AB, (), [[1, 2]]),
        (None, AB, (), [[1, 2]]),
        (("x", "y"), None, (), [[1, 2]]),
        (("b", "a"), ("a", "b", "c"), ("c",), [[2, 1, None]]),
        (("a", "x"), AB, (), "unknown x; missing b. The model was trained on a, b."),
        (("a", "a"), AB, (), "Columns are there more than once: a."),
        (("a", "b"), ("a", "b", "c"), (), "missing c"),
        (("a", "b"), ("a",), (), "unknown b"),
        (None, ("a",), (), "Each row has 2 features, the model was trained on 1."),
        (("x", "y"), "1", (), "Each row has 2 features, the model was trained on 1."),
    ],
)
def test_columns_in_the_models_order(sent: Any, its: Any, optional: tuple[str, ...], right: Any) -> None:
    """By name where both sides have names, else by position."""
    table = table_of([[1, 2]] if sent is None else {"columns": list(sent), "data": [[1, 2]]})
    schema = Schema(1) if its == "1" else Schema(len(its) if its else None, its, optional=frozenset(optional))
    try:
        rows = arranged(table, schema).rows
    except HandlerError as error:
        rows = error.message
    assert rows == right or (isinstance(rows, str) and isinstance(right, str) and right in rows)
