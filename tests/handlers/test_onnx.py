"""ONNX: one and several inputs and outputs of every type, shapes that do not fit, files that are broken."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from polyhost_handlers import onnx_locale
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import BadInput, HandlerError, LoadFailed
from polyhost_handlers.onnx_files import names_files_elsewhere
from polyhost_handlers.onnx_handler import OnnxHandler
from support.forms import examples

from handlers.calling import Model, csv, npy, npy_header

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
ROWS = [[0.5, -1.0, 2.0], [3.0, 4.0, -5.5]]
# name, type, shape
Spec = tuple[str, int, Any]


def write(path: Path, nodes: Sequence[Any], inputs: Sequence[Spec], outputs: Sequence[Any]) -> None:
    values = [helper.make_tensor_value_info(*spec) if isinstance(spec, tuple) else spec for spec in outputs]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info(*spec) for spec in inputs], values)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


@pytest.fixture
def serve(tmp_path: Path, load: Callable[..., Model]) -> Callable[..., Model]:
    def served(nodes: Sequence[Any], inputs: Sequence[Spec], outputs: Sequence[Any], **environ: str) -> Model:
        write(tmp_path / "model.onnx", nodes, inputs, outputs)
        return load("onnx_handler", tmp_path, **environ)

    return served


def negated(kind: int = FLOAT, shape: Any = ("rows", 3)) -> tuple[list[Any], list[Spec], list[Spec]]:
    return [helper.make_node("Neg", ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)]


def echoed(kind: int, shape: Any = ("rows", 2)) -> tuple[list[Any], list[Spec], list[Spec]]:
    return [helper.make_node("Identity", ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (csv(ROWS), "text/csv"),
        (csv(ROWS), ""),
        (json.dumps(ROWS).encode(), "application/json"),
        (json.dumps({"instances": ROWS}).encode(), "application/json"),
        (json.dumps({"instances": [{"features": row} for row in ROWS]}).encode(), "application/json"),
        (json.dumps({"inputs": ROWS}).encode(), "application/json"),
        (json.dumps({"inputs": {"x": ROWS}}).encode(), "application/json"),
        (json.dumps({"x": ROWS}).encode(), "application/json"),
        (b"".join(json.dumps(row).encode() + b"\n" for row in ROWS), "application/jsonlines"),
        (npy(ROWS), "application/x-npy"),
        (npy(np.array(ROWS, ">f4")), "application/x-npy"),
    ],
)
def test_every_input(body: bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """
    The same rows, as the type that the network declares.
    """
    assert serve(*negated()).ask(body, content_type).json() == {"predictions": (-np.array(ROWS)).tolist()}


def test_every_output(serve: Callable[..., Model]) -> None:
    """
    JSON, CSV and npy; the container may set the default.
    """
    model = serve(*negated(), SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="text/csv")

    assert model.ask(csv(ROWS)).body == b"-0.5,1.0,-2.0\n-3.0,-4.0,5.5"
    assert (
        np.load(io.BytesIO(model.ask(csv(ROWS), accept="application/x-npy").body)).tolist()
        == (-np.array(ROWS)).tolist()
    )
    assert model.ask(csv(ROWS), accept="application/json").content_type == "application/json"


def test_a_single_row_and_deep_lists(serve: Callable[..., Model]) -> None:
    """
    One row needs no brackets; images and sequences have more dimensions than rows.
    """
    assert serve(*negated()).ask(b"[1, 2, 3]", "application/json").json() == {"predictions": [[-1, -2, -3]]}
    images = np.arange(8.0).reshape(1, 2, 2, 2)
    deep = serve(*negated(shape=("rows", 2, 2, 2)))
    assert deep.ask(json.dumps(images.tolist()), "application/json").json() == {"predictions": (-images).tolist()}
    assert deep.ask(npy(images[0]), "application/x-npy").json() == {"predictions": (-images).tolist()}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TensorProto.DOUBLE, [[0.1, 2.0]]),
        (TensorProto.FLOAT16, [[0.5, 2.0]]),
        (INT64, [[2**40, -1]]),
        (TensorProto.INT32, [[1, -1]]),
        (TensorProto.INT8, [[1, -1]]),
        (TensorProto.UINT8, [[1, 255]]),
        (TensorProto.UINT16, [[1, 2]]),
        (TensorProto.BOOL, [[True, False]]),
        (STRING, [["a", "é"]]),
    ],
)
def test_every_type(kind: int, values: list[list[Any]], serve: Callable[..., Model]) -> None:
    """
    What is sent arrives as it was.
    """
    model = serve(*echoed(kind))

    assert model.ask(json.dumps(values), "application/json").json() == {"predictions": values}
    assert model.ask(npy(values), "application/x-npy").json() == {"predictions": values}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"a,2b\nc,d", "text/csv"), (npy(np.array([[b"a", b"2b"], [b"c", b"d"]])), "application/x-npy")],
)
def test_texts(body: bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """
    CSV and arrays of bytes hold texts too.
    """
    assert serve(*echoed(STRING)).ask(body, content_type).json() == {"predictions": [["a", "2b"], ["c", "d"]]}


def test_a_byte_of_truth_counts_as_one(serve: Callable[..., Model]) -> None:
    """
    numpy takes any byte but 0 for True; onnxruntime would calculate with it.
    """
    cast = [helper.make_node("Cast", ["x"], ["y"], to=INT64)]
    model = serve(cast, [("x", TensorProto.BOOL, ["rows", 2])], [("y", INT64, ["rows", 2])])
    body = npy_header("{'descr': '|b1', 'fortran_order': False, 'shape': (2, 2), }", b"\xff\x00\x02\x01")

    assert np.frombuffer(b"\xff\x00\x02\x01", bool).astype(bool).tolist() == [True, False, True, True]
    assert model.ask(body, "application/x-npy").json() == {"predictions": [[1, 0], [1, 1]]}


def test_shapes_that_a_network_leaves_open(serve: Callable[..., Model]) -> None:
    """
    No rank, one dimension, a scalar.
    """
    assert serve(*negated(shape=None)).ask(b"[[1, 2]]", "application/json").json() == {"predictions": [[-1, -2]]}
    model = serve(*negated(shape=("rows",)))
    assert model.ask(b"1\n2").json() == model.ask(b"[1, 2]", "application/json").json() == {"predictions": [-1, -2]}
    assert model.ask(b"1\n2", accept="text/csv").body == b"-1.0\n-2.0"
    total = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], [("x", FLOAT, ["rows", 2])], [("y", FLOAT, [])]
    assert serve(*total).ask(b"1,2\n3,4", accept="text/csv").body == b"10.0"


def test_several_inputs_and_outputs_go_by_name(serve: Callable[..., Model]) -> None:
    """
    Each with the type it declares.
    """
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Identity", ["word"], ["said"])]
    inputs = [("a", FLOAT, ["rows", 2]), ("b", FLOAT, ["rows", 2]), ("word", STRING, ["rows"])]
    model = serve(nodes, inputs, [("sum", FLOAT, ["rows", 2]), ("said", STRING, ["rows"])])
    sent = {"a": [[1, 2]], "b": [[3, 4]], "word": ["x"]}

    for document in (sent, {"inputs": sent}):
        answer = model.ask(json.dumps(document), "application/json")
        assert answer.json() == {"predictions": {"sum": [[4, 6]], "said": ["x"]}}
    for document, sentence in (
        ({"a": [[1, 2]]}, "Inputs are missing: b, word"),
        ({"inputs": ["a", "b", "word"]}, 'send JSON {"inputs": {name: rows}} with a, b, word'),
        ({"inputs": "a b word"}, "with a, b, word"),
        ({"inputs": 5}, "with a, b, word"),
        ({"inputs": None}, "with a, b, word"),
        ([1], "with a, b, word"),
        ({**sent, "a": {"b": 1}}, "Input a takes tensor(float). The value: an object is not a number."),
        ({**sent, "a": None}, "Input a has shape [any, 2], the request []"),
        ({**sent, "c": 1}, "The model has no inputs c: its inputs are a, b, word."),
        ({**sent, "a": [[1, 2], [3]]}, "The rows differ in length"),
        ({**sent, "a": [[1, 2]] * 3, "b": [[1, 2]] * 2}, "The model cannot take this input"),
    ):
        answer = model.ask(json.dumps(document), "application/json")
        assert answer.status == 400
        assert sentence in answer.message
    answer = model.ask(b"1,2")
    assert (answer.status, answer.message) == (
        400,
        'The model has several inputs: send JSON {"inputs": {name: rows}} with a, b, word.',
    )


def test_a_classifiers_maps(serve: Callable[..., Model]) -> None:
    """
    A sequence of maps, as scikit-learn's exporter makes of probabilities.
    """
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, [])))
    nodes = [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 7])]
    model = serve(nodes, [("x", FLOAT, ["rows", 2])], [helper.make_value_info("y", maps)])

    assert model.ask(b"0.25,0.75").json() == {"predictions": [{"0": 0.25, "7": 0.75}]}
    assert model.ask(b"0.25,0.75\n1,0", accept="text/csv").body == b"0.25,0.75\n1.0,0.0"
    values = model.ask(b"0.25,0.75", accept="application/x-npy").body
    assert np.load(io.BytesIO(values)).tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    ("body", "content_type", "status", "sentence"),
    [
        (b"", "text/csv", 204, ""),
        (b"\xef\xbb\xbf", "text/csv", 204, ""),
        (b"1,2", "text/csv", 400, "Each row has 2 features, the model was trained on 3."),
        (b"[[[1, 2, 3]]]", "application/json", 400, "Input x has shape [any, 3], the request [1, 1, 3]."),
        (b"[]", "application/json", 400, "Input x has shape [any, 3], the request [1, 0]."),
        (
            b'[["a", "b", "c"]]',
            "application/json",
            400,
            "Input x takes tensor(float). Row 1, field 1: 'a' is not a number.",
        ),
        (b"[[1" + b"0" * 400 + b", 1, 2]]", "application/json", 400, "does not fit into float64"),
        (b"[[1, 2, 3], [4]]", "application/json", 400, "The rows differ in length"),
        (b"5", "application/json", 400, "A JSON int is not rows"),
        (b'[{"a": 1}]', "application/json", 400, "Each row has 1 features"),
        (b"a,b,c", "text/csv", 400, "'a' is not a number"),
        (npy(np.zeros(3, dtype=[("a", "f4")])), "application/x-npy", 400, "send numbers"),
        (
            npy_header("{'descr': '|S0', 'fortran_order': False, 'shape': (9000000, 3), }"),
            "application/x-npy",
            400,
            "send numbers",
        ),
        (b"1,2,3", "text/libsvm", 415, "send text/csv, application/json"),
        (b"1e300,2,3", "text/csv", 400, "Line 1, field 1: 1e+300 does not fit into float32."),
        (b"1e999,2,3", "text/csv", 400, "Line 1, field 1: '1e999' does not fit into float64."),
        (b"[[1e999, 2, 3]]", "application/json", 400, "does not fit into float64"),
        (b"inf,nan,", "text/csv", 200, ""),
        (b"[[Infinity, NaN, null]]", "application/json", 200, ""),
    ],
)
def test_codes(body: bytes, content_type: str, status: int, sentence: str, serve: Callable[..., Model]) -> None:
    """
    A client's mistake is a 4xx that says what the network takes.
    """
    answer = serve(*negated()).ask(body, content_type)

    assert answer.status == status
    assert status < 400 or sentence in answer.message


WHOLE = [
    (TensorProto.UINT8, 256, "does not fit into uint8: it takes 0 to 255"),
    (TensorProto.UINT8, -1, "does not fit into uint8"),
    (TensorProto.INT8, 200, "does not fit into int8"),
    (TensorProto.INT8, -129, "does not fit into int8"),
    (TensorProto.UINT16, 2**16, "does not fit into uint16"),
    (TensorProto.INT32, 2**40, "does not fit into int32"),
    (TensorProto.INT32, -(2**31) - 1, "does not fit into int32"),
    (TensorProto.UINT32, 2**32, "does not fit into uint32"),
    (TensorProto.UINT64, -1, "does not fit into uint64"),
    (TensorProto.UINT64, 2**64, "does not fit into uint64"),
    (INT64, 2**63, "does not fit into int64"),
    (INT64, 1.5, "is not a whole number"),
    (INT64, 1e300, "does not fit into int64|has more digits"),
    (INT64, float("inf"), "is not a whole number"),
    (TensorProto.BOOL, 2, "is neither true nor false"),
    (FLOAT, 1e39, "does not fit into float32"),
    (FLOAT, -1e39, "does not fit into float32"),
    (TensorProto.FLOAT16, 70000, "does not fit into float16"),
]


@pytest.mark.parametrize(("kind", "value", "sentence"), WHOLE)
def test_a_number_that_does_not_fit_is_refused(
    kind: int, value: float, sentence: str, serve: Callable[..., Model]
) -> None:
    """
    From CSV, JSON and npy alike, with its place, itself and the type.
    """
    model = serve(*echoed(kind))
    bodies = [
        (f"1,0\n1,{value!r}".encode(), "text/csv"),
        (json.dumps([[1, 0], [1, value]]).encode(), "application/json"),
    ]
    array = np.array([[1, 0], [1, value]])
    if array.dtype != object:
        bodies.append((npy(array), "application/x-npy"))
    for body, content_type in bodies:
        answer = model.ask(body, content_type)
        assert answer.status == 400, (content_type, answer)
        assert re.search(sentence, answer.message), answer.message
        assert re.search(r"Input x takes tensor\(\w+\). (Line|Row) 2, field 2: ", answer.message), answer.message


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (INT64, 2**53 + 1),
        (INT64, 2**63 - 1),
        (INT64, -(2**63)),
        (TensorProto.UINT64, 2**64 - 1),
        (TensorProto.INT32, -(2**31)),
        (TensorProto.UINT8, 255),
    ],
)
def test_whole_numbers_keep_every_digit(kind: int, value: int, serve: Callable[..., Model]) -> None:
    """
    Beside any other number: float64, in which a mixture would be read, has 53 bits.
    """
    model = serve(*echoed(kind))

    for body, content_type in (
        (f"{value},1\n7.0,2e0", "text/csv"),
        (f"[[{value}, 1], [7.0, 2]]", "application/json"),
        (npy(np.array([[value, 1], [7, 2]], helper.tensor_dtype_to_np_dtype(kind))), "application/x-npy"),
    ):
        assert model.ask(body, content_type).json() == {"predictions": [[value, 1], [7, 2]]}


@pytest.mark.parametrize("body", [b",2", b"nan,2", b" ,2"])
def test_a_whole_number_that_is_missing(body: bytes, serve: Callable[..., Model]) -> None:
    """
    Nothing stands for it.
    """
    answer = serve(*echoed(INT64)).ask(body)

    assert answer.status == 400
    assert "Line 1, field 1: " in answer.message


def test_text_stays_text(serve: Callable[..., Model]) -> None:
    """
    Whatever it looks like; a number that was written somehow is refused, its digits are not.
    """
    model = serve(*echoed(STRING))
    words = [["02139", "1E5"], ["nan", "True"], ["2020", ""], ["1_0", "inf"], [" ", "\t a "]]

    assert model.ask("\n".join(map(",".join, words))).json() == {"predictions": words}
    assert model.ask(json.dumps(words), "application/json").json() == {"predictions": words}
    assert model.ask(b"[[2020, 7]]", "application/json").json() == {"predictions": [["2020", "7"]]}
    answer = model.ask(b'[["a", 1e5]]', "application/json")
    assert "Row 1, field 2: 100000.0 is not text: put it in quotes." in answer.message
    assert "null is missing: the model takes text" in model.ask(b'[["a", null]]', "application/json").message


@pytest.mark.parametrize("shape", [("rows",), ("rows", 1)])
def test_one_text_a_row(shape: Any, serve: Callable[..., Model]) -> None:
    """
    A line of CSV is one text or is refused; plain text keeps its commas.
    """
    model = serve(*echoed(STRING, shape))

    def texts(*arguments: Any) -> list[str]:
        return [*np.ravel(model.ask(*arguments).json()["predictions"])]

    assert texts(b'great\n\n"great, loved it"\n2020\n') == ["great", "", "great, loved it", "2020"]
    assert texts(b"great, loved it\nnot", "text/plain") == ["great, loved it", "not"]
    assert texts(b'["great, loved it", "2020"]', "application/json") == ["great, loved it", "2020"]
    assert texts(b'{"instances": [["a"], ["b"]]}', "application/json") == ["a", "b"]
    assert texts(npy(["a", "b"]), "application/x-npy") == ["a", "b"]
    answer = model.ask(b"great\ngreat, loved it")
    assert answer.status == 400
    assert (
        "Line 2 has 2 fields, the model takes one text a line: put a text with a comma in double quotes"
        in answer.message
    )


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[1, 2, 3]", "application/json"),
        (b'{"instances": [1, 2, 3]}', "application/json"),
        (b'{"inputs": [1, 2, 3]}', "application/json"),
        (b"1\n2\n3", "text/csv"),
        (npy([1.0, 2.0, 3.0]), "application/x-npy"),
    ],
)
def test_a_flat_list_for_one_column(body: bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """
    A value a row: with one column it can be nothing else.
    """
    assert serve(*negated(shape=("rows", 1))).ask(body, content_type).json() == {"predictions": [[-1], [-2], [-3]]}


COLUMNS = {"age": [30.0, 40.0], "city": ["oslo", "02139"], "n": [7, 8]}


def of_columns() -> tuple[list[Any], list[Spec], list[Spec]]:
    """As skl2onnx exports a pipeline of a DataFrame: an input for each column."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in COLUMNS]
    kinds = {"age": FLOAT, "city": STRING, "n": INT64}
    inputs = [(name, kind, ["rows", 1]) for name, kind in kinds.items()]
    return nodes, inputs, [(f"{name}_out", kind, ["rows", 1]) for name, kind in kinds.items()]


RECORDS = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
SHUFFLED = ["n", "age", "city"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"30,oslo,7\n40,02139,8", "text/csv"),
        (b"n,age,city\n7,30,oslo\n8,40,02139", "text/csv"),
        (b"age;city;n\n30;oslo;7\n40;02139;8", "text/csv"),
        (json.dumps(COLUMNS).encode(), "application/json"),
        (json.dumps({"inputs": COLUMNS}).encode(), "application/json"),
        (json.dumps({"inputs": {name: [[value] for value in column] for name, column in COLUMNS.items()}}).encode(),
         "application/json"),
        (json.dumps(RECORDS).encode(), "application/json"),
        (json.dumps({"instances": RECORDS}).encode(), "application/json"),
        (json.dumps({"inputs": RECORDS}).encode(), "application/json"),
        (json.dumps({"dataframe_records": RECORDS}).encode(), "application/json"),
        ("\n".join(map(json.dumps, RECORDS)).encode(), "application/jsonlines"),
        (b'{"columns": ["n", "age", "city"], "data": [[7, 30, "oslo"], [8, 40, "02139"]]}', "application/json"),
        (b'{"dataframe_split": {"columns": ["n", "age", "city"], "data": [[7, 30, "oslo"], [8, 40, "02139"]]}}',
         "application/json"),
        (b'[[30, "oslo", 7], [40, "02139", 8]]', "application/json"),
        (json.dumps({"inputs": [
            {"name": name, "shape": [2, 1], "datatype": "BYTES", "data": COLUMNS[name]} for name in SHUFFLED
        ]}).encode(), "application/json"),
    ],
)  # fmt: skip
def test_an_input_for_each_column(body: bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """
    By name in any order, or by position.
    """
    answer = serve(*of_columns()).ask(body, content_type)

    assert answer.status == 200, answer.message
    assert answer.json()["predictions"] == {f"{name}_out": [[value] for value in COLUMNS[name]] for name in COLUMNS}


def test_an_array_for_each_input(serve: Callable[..., Model]) -> None:
    """
    numpy.savez keeps their names.
    """
    stream = io.BytesIO()
    np.savez(stream, **{name: np.array(COLUMNS[name])[:, None] for name in SHUFFLED})
    answer = serve(*of_columns()).ask(stream.getvalue(), "application/x-npz")

    assert answer.json()["predictions"] == {f"{name}_out": [[value] for value in COLUMNS[name]] for name in COLUMNS}
    stream = io.BytesIO()
    np.savez_compressed(stream, np.array(ROWS))
    assert serve(*negated()).ask(stream.getvalue(), "application/x-npz").json() == {
        "predictions": (-np.array(ROWS)).tolist()
    }


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (
            b"city,n,height\noslo,7,30",
            "text/csv",
            "unknown height; missing age. The model was",
        ),
        (b"city,n,n\noslo,7,30", "text/csv", "Columns are there more than once: n."),
        (b'[{"age": 1, "city": "oslo"}]', "application/json", "Inputs are missing: n"),
        (b'[{"age": 1, "city": "oslo", "n": 1, "m": 1}]', "application/json", "The model has no inputs m"),
        (b'[{"age": 1, "city": "oslo", "n": 1}, {"age": 1}]', "application/json", "Row 2 lacks city, n"),
        (b'{"columns": ["age", "city", "m"], "data": [[1, "oslo", 1]]}', "application/json", "unknown m; missing n"),
        (b"30,oslo", "text/csv", "Each row has 2 features, the model was trained on 3."),
        (b"30,oslo,7.5", "text/csv", "Input n takes tensor(int64). Line 1, field 1: '7.5' is not a whole number"),
    ],
)
def test_columns_that_are_not_the_networks(
    body: bytes, content_type: str, sentence: str, serve: Callable[..., Model]
) -> None:
    """
    A list of what is unknown, missing or doubled.
    """
    answer = serve(*of_columns()).ask(body, content_type)

    assert answer.status == 400
    assert sentence in answer.message


def test_a_tensor_of_the_open_inference_protocol(serve: Callable[..., Model]) -> None:
    """
    Its data is flat, its shape says which rows it makes.
    """
    model = serve(*negated())
    document = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": np.ravel(ROWS).tolist()}]}

    assert model.ask(json.dumps(document), "application/json").json() == {"predictions": (-np.array(ROWS)).tolist()}
    document["inputs"][0]["shape"] = [4, 2]
    assert "The data of tensor x has not its shape" in model.ask(json.dumps(document), "application/json").message


WORDS = ["GOOD", "ÀÉÖ ŒŠŽ", "ΣΑΓ", "ЖЩЪ", "Straße", "İI"]


def lowered(**attributes: Any) -> tuple[list[Any], list[Spec], list[Spec]]:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER", **attributes)
    return [node], [("x", STRING, ["rows"])], [("y", STRING, None)]


@pytest.mark.parametrize("attributes", [{}, {"locale": "en_US.UTF-8"}, {"locale": "en_GB.UTF-8"}])
def test_a_text_network_needs_no_locale_of_the_system(
    attributes: dict[str, str], serve: Callable[..., Model], tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """
    Letters of every alphabet change case as in the locale that it asks for, which is not installed here.
    """
    temp = tmp_path_factory.mktemp("temp")
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    onnx_locale._folder_of.cache_clear()
    before = os.environ.get("LOCPATH")
    answer = serve(*lowered(**attributes)).ask(json.dumps(WORDS), "application/json")

    # One letter for one, as the C library does: Python makes two of the Turkish one.
    expected = [word.replace("İ", "i").lower() for word in WORDS]
    assert answer.json() == {"predictions": expected}
    assert os.environ.get("LOCPATH") == before
    assert list(temp.iterdir()) == []


def test_a_locale_with_rules_of_its_own_is_not_replaced(serve: Callable[..., Model]) -> None:
    """
    A Turkish I is another letter.
    """
    try:
        # onnxruntime 1.23 first asks for it when it runs.
        message = serve(*lowered(locale="tr_TR.UTF-8")).ask(b'["I"]', "application/json").message
    except LoadFailed as error:
        message = error.message
    assert "it changes case by the locale tr_TR.UTF-8, which this system does not have: install it" in message


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, r"one \*.onnx file belongs in the archive, found none."),
        ({"a.onnx": b"", "b.onnx": b""}, r"one \*.onnx file belongs in the archive, found a.onnx, b.onnx."),
        ({"a.onnx": b""}, "a.onnx: "),
        ({"a.onnx": b"text\n"}, "a.onnx: "),
    ],
)
def test_what_is_no_network(files: dict[str, bytes], sentence: str, tmp_path: Path, load: Callable[..., Model]) -> None:
    """
    None, two, or one that onnxruntime does not know.
    """
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadFailed, match=rf"^Unable to load model: {sentence}"):
        load("onnx_handler", tmp_path)


def outside(location: str, backwards: bool = False) -> TensorProto:
    """Weights that lie in another file."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    if backwards:
        # Valid protobuf all the same: the value before its key.
        entry = tensor.external_data[0].SerializeToString()
        length = 2 + len("location")
        del tensor.external_data[0]
        swapped = entry[length:] + entry[:length]
        tensor.MergeFromString(bytes([13 << 3 | 2, len(swapped)]) + swapped)
        assert tensor.external_data[-1].key == "location"
    return tensor


def in_a_branch(tensor: TensorProto) -> tuple[list[Any], list[TensorProto]]:
    """As the constant of a graph in an attribute of a node."""
    value = helper.make_tensor_value_info("c", FLOAT, [2])
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "b", [], [value])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    choice = helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)
    return [choice, helper.make_node("Add", ["x", "w"], ["y"])], [yes]


@pytest.mark.parametrize("where", ["initializer", "backwards", "branch"])
@pytest.mark.parametrize("location", ["../secret", "/ABSOLUTE/secret", "link", "sub/../../secret"])
def test_a_network_that_names_files_elsewhere(
    location: str, where: str, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """
    Older releases of onnxruntime read them, and the predictions tell what is in them.
    """
    folder, secret = tmp_path / "archive", tmp_path / "secret"
    folder.mkdir()
    secret.write_bytes(np.array([1, 2], "f4").tobytes())
    (folder / "link").symlink_to(secret)
    tensor = outside(location.replace("/ABSOLUTE", str(tmp_path)), backwards=where == "backwards")
    nodes, tensors = [helper.make_node("Add", ["x", "w"], ["y"])], [tensor]
    if where == "branch":
        nodes, tensors = in_a_branch(tensor)
    values = [helper.make_tensor_value_info(name, FLOAT, ["rows", 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(network.SerializeToString())

    with pytest.raises(LoadFailed, match=r"^Unable to load model: model.onnx names files outside of its archive"):
        load("onnx_handler", folder)


def test_weights_in_a_file_of_the_archive(tmp_path: Path, load: Callable[..., Model]) -> None:
    """
    Large networks are exported so.
    """
    (tmp_path / "weights.bin").write_bytes(np.array([1, 2], "f4").tobytes())
    values = [helper.make_tensor_value_info(name, FLOAT, ["rows", 2]) for name in "xy"]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [outside("weights.bin")])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(network.SerializeToString())

    assert load("onnx_handler", tmp_path).ask(b"0,0").json() == {"predictions": [[1, 2]]}


@settings(max_examples=examples(100))
@given(content=st.binary(max_size=40) | st.binary(max_size=30).map(lambda tail: b"\x3a\x20\x2a\x1elocation" + tail))
def test_any_bytes_have_names_or_are_broken(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """
    The walk to the names ends, and raises nothing that a failed load would not name.
    """
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content + b"location")
    with contextlib.suppress(ValueError, IndexError):
        assert names_files_elsewhere(path) in (True, False)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_network_is_refused_or_answers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """
    Cut off or with wrong bytes, also in its names: a sentence at load, or at most a 400.
    """
    path = tmp_path / "model.onnx"
    write(path, *negated())
    content = path.read_bytes()
    source = ModelSource(tmp_path, "m", {})
    for seed in range(250):
        dice, damaged = random.Random(seed), bytearray(content)
        damaged[dice.randrange(len(damaged))] = dice.choice([0, 127, 128, 255, dice.randrange(256)])
        path.write_bytes(damaged if seed % 2 else content[: dice.randrange(len(content))])
        try:
            OnnxHandler.load(source).predict(Request(csv(ROWS)))
        except (LoadFailed, BadInput) as error:
            assert error.message  # noqa: PT017
        except HandlerError as error:
            pytest.fail(f"{seed}: {error.message}")
    capfd.readouterr()


@pytest.mark.parametrize("body", ["true,false", "true,false\nFalse,TRUE", "1,0"])
def test_a_row_of_truths_is_no_header(serve: Callable[..., Model], body: str) -> None:
    answer = serve(*echoed(TensorProto.BOOL)).ask(body, "text/csv")

    assert answer.json()["predictions"] == [[True, False], [False, True]][: body.count("\n") + 1]


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"inputs": {"x": [[1, 2]], "y": [[3]]}}),
        json.dumps({"x": [[1, 2]], "y": 3}),
        '{"x": [[1, 2]], "x": [[3, 4]]}',
    ],
)
def test_what_the_network_has_no_input_for_is_refused(serve: Callable[..., Model], body: str) -> None:
    assert serve(*echoed(FLOAT)).ask(body, "application/json").status == 400


def test_an_input_that_is_there_twice_is_refused(serve: Callable[..., Model]) -> None:
    names = [*COLUMNS, "n"]
    tensors = [{"name": name, "shape": [2], "datatype": "X", "data": COLUMNS[name]} for name in names]

    answer = serve(*of_columns()).ask(json.dumps({"inputs": tensors}), "application/json")

    assert (answer.status, "more than once: n" in answer.message) == (400, True)


def test_a_sequence_of_arrays_has_no_table(serve: Callable[..., Model]) -> None:
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["twice"], axis=1),
        helper.make_node("SequenceConstruct", ["x", "twice"], ["y"]),
    ]
    model = serve(nodes, [("x", FLOAT, ["rows", 2])], [helper.make_tensor_sequence_value_info("y", FLOAT, None)])

    assert model.ask("[[1, 2]]", "application/json", "text/csv").status == 415
    assert model.ask("[[1, 2]]", "application/json").json() == {"predictions": [[[1, 2]], [[1, 2, 1, 2]]]}
