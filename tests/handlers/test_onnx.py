"""ONNX: one and several inputs and outputs of every type, shapes that do not fit, files that are broken."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
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
        ({"inputs": ["a", "b", "word"]}, "Inputs are missing: a, b, word"),
        ({"inputs": "a b word"}, "Inputs are missing: a, b, word"),
        ({"inputs": 5}, "Inputs are missing"),
        ({"inputs": None}, "Inputs are missing"),
        ([1], "Inputs are missing"),
        ({**sent, "a": {"b": 1}}, "Input a takes tensor(float)"),
        ({**sent, "a": None}, "Input a has shape [any, 2], the request []"),
        ({**sent, "a": [[1, 2], [3]]}, "The rows differ in length"),
        ({**sent, "a": [[1, 2]] * 3, "b": [[1, 2]] * 2}, "The model cannot take this input"),
    ):
        answer = model.ask(json.dumps(document), "application/json")
        assert answer.status == 400
        assert sentence in answer.message
    answer = model.ask(b"1,2")
    assert (answer.status, answer.message) == (
        400, 'The model has several inputs: send JSON {"inputs": {name: rows}} with a, b, word.',
    )  # fmt: skip


def test_a_classifiers_maps(serve: Callable[..., Model]) -> None:
    """
    A sequence of maps, as scikit-learn's exporter makes of probabilities.
    """
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, [])))
    nodes = [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 7])]
    model = serve(nodes, [("x", FLOAT, ["rows", 2])], [helper.make_value_info("y", maps)])

    assert model.ask(b"0.25,0.75").json() == {"predictions": [{"0": 0.25, "7": 0.75}]}
    assert model.ask(b"0.25,0.75", accept="text/csv").body == b'"{0: 0.25, 7: 0.75}"'
    assert model.ask(b"0.25,0.75", accept="application/x-npy").status == 415


@pytest.mark.parametrize(
    ("body", "content_type", "status", "sentence"),
    [
        (b"", "text/csv", 204, ""),
        (b"\xef\xbb\xbf", "text/csv", 204, ""),
        (b"1,2", "text/csv", 400, "Input x has shape [any, 3], the request [1, 2]."),
        (b"[[[1, 2, 3]]]", "application/json", 400, "Input x has shape [any, 3], the request [1, 1, 3]."),
        (b"[]", "application/json", 400, "Input x has shape [any, 3], the request [1, 0]."),
        (b'[["a", "b", "c"]]', "application/json", 400, "Input x takes tensor(float): could not convert string"),
        (b"[[1" + b"0" * 400 + b", 1, 2]]", "application/json", 400, "Input x takes tensor(float): int too large"),
        (b"[[1, 2, 3], [4]]", "application/json", 400, "The rows differ in length"),
        (b"5", "application/json", 400, "A JSON int is not rows"),
        (b'[{"a": 1}]', "application/json", 400, 'The JSON object has no "instances"'),
        (b"a,b,c", "text/csv", 400, "'a' is not a number"),
        (npy(np.zeros(3, dtype=[("a", "f4")])), "application/x-npy", 400, "send numbers"),
        (
            npy_header("{'descr': '|S0', 'fortran_order': False, 'shape': (9000000, 3), }"),
            "application/x-npy",
            400,
            "send numbers",
        ),
        (b"1,2,3", "text/libsvm", 415, "send text/csv, application/json"),
        (b"1e300,2,3", "text/csv", 200, ""),
    ],
)
def test_codes(body: bytes, content_type: str, status: int, sentence: str, serve: Callable[..., Model]) -> None:
    """
    A client's mistake is a 4xx that says what the network takes.
    """
    answer = serve(*negated()).ask(body, content_type)

    assert answer.status == status
    assert status < 400 or sentence in answer.message


@pytest.mark.parametrize("body", [b"1.5,2", b",2", b"1e300,2", b"inf,2"])
def test_whole_numbers_are_not_made_up(body: bytes, serve: Callable[..., Model]) -> None:
    """
    A half, a missing or an endless number would become some other one.
    """
    answer = serve(*echoed(INT64)).ask(body)

    assert (answer.status, answer.message) == (400, "Input x takes tensor(int64): send whole numbers.")


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


@settings(max_examples=examples(200))
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
