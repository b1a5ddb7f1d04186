"""The Open Inference Protocol by gRPC: called by Triton's client, and by messages that it would not send."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from polyhost.api.open_inference.grpc_messages import CLASSES, SERVICE
from polyhost.config import Config
from polyhost.errors import MissingDependency
from polyhost.server import _grpc_fronts
from support.endpoint import EndpointServer, packed
from support.server import free_port
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

# What it raises is longer than a header may be. There, and in its output's name, is half a character.
COMPLAINS = """
def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept):
    if body.startswith("7"):
        return '{"\\\\ud800a": [1.5]}', "application/json"
    raise ValueError("\\ud800" + "é" * 5000)
"""
HOUSES = np.array([[1998, 2150, 3, 2.5, 0.4, 2], [1951, 900, 2, 1.1, 0.1, 0]])
ROWS = "\n".join(",".join(map(repr, row)) for row in HOUSES.tolist())


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(port: int, tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Iterator[EndpointServer]:
    folder = tmp_path_factory.mktemp("models")
    for name in ("boston", "house_preprocessor"):
        shutil.copy(samples_folder / f"{name}.tar.gz", folder)
    code = tmp_path_factory.mktemp("complains")
    (code / "code").mkdir()
    (code / "code" / "inference.py").write_text(COMPLAINS)
    packed(code, folder / "complains.tar.gz")
    server = EndpointServer("native", folder, "--grpc-port", str(port))
    server.process.wait_for_line("ready for gRPC on")
    yield server
    assert server.stop() == 0, server.process.log


@pytest.fixture
def client(server: EndpointServer, port: int) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def sent(array: np.ndarray[Any, Any], name: str = "x") -> triton.InferInput:
    one = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    one.set_data_from_numpy(array)
    return one


def fields_of(descriptor: Any) -> dict[str, Any]:
    """What is on the wire: of a map also its entries, which are a message."""
    its = descriptor_pb2.DescriptorProto()
    descriptor.CopyToProto(its)
    entries = {entry.name: entry.SerializeToString() for entry in its.nested_type if entry.options.map_entry}
    return {
        field.name: (field.number, field.type, field.label, field.type_name, field.HasField("oneof_index"),
                     entries.get(field.type_name.rpartition(".")[2]))
        for field in its.field
    }  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_messages_are_those_of_tritons_client(name: str) -> None:
    theirs: Any = service_pb2
    for part in name.split("."):
        theirs = getattr(theirs, part)

    assert fields_of(CLASSES[name].DESCRIPTOR) == fields_of(theirs.DESCRIPTOR)


def test_predictions_are_invoke_endpoints(server: EndpointServer, client: Any) -> None:
    prices = json.loads(server.predict("boston.tar.gz", ROWS))
    result = client.infer("polyhost/boston.tar.gz", [sent(HOUSES)], request_id="mine", model_version="1")

    assert result.as_numpy("predict").tolist() == prices
    assert (result.get_response().id, result.get_response().model_name) == ("mine", "polyhost/boston.tar.gz")


def test_tensors_in_fields_of_their_types(server: EndpointServer, client: Any) -> None:
    """KServe's clients send them so, and are answered so."""
    rows = [[*HOUSES[0], "y", "n"], [*HOUSES[1], "n", "y"]]
    request = service_pb2.ModelInferRequest(model_name="polyhost/house_preprocessor.tar.gz")
    for column in range(8):
        values = [row[column] for row in rows]
        if column < 6:
            one = request.inputs.add(name=f"c{column}", datatype="FP64", shape=[2, 1])
            one.contents.fp64_contents.extend(values)
        else:
            one = request.inputs.add(name=f"c{column}", datatype="BYTES", shape=[2])
            one.contents.bytes_contents.extend(value.encode() for value in values)
    (output,) = client._client_stub.ModelInfer(request).outputs

    answer = server.predict(
        "house_preprocessor.tar.gz", json.dumps(rows), "application/json", Accept="application/json"
    )
    assert np.reshape(output.contents.fp64_contents, output.shape).tolist() == json.loads(answer)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [("INT8", "int_contents", [1] * 6), ("UINT16", "uint_contents", [1] * 6), ("INT64", "int64_contents", [1] * 6),
     ("UINT64", "uint64_contents", [1] * 6), ("FP32", "fp32_contents", [1.0] * 6)],
)  # fmt: skip
def test_each_field_is_read(server: EndpointServer, client: Any, datatype: str, field: str, values: list[Any]) -> None:
    request = service_pb2.ModelInferRequest(model_name="polyhost/boston.tar.gz")
    one = request.inputs.add(name="x", datatype=datatype, shape=[1, 6])
    getattr(one.contents, field).extend(values)

    (output,) = client._client_stub.ModelInfer(request).outputs
    assert list(output.contents.fp64_contents) == json.loads(server.predict("boston.tar.gz", "1,1,1,1,1,1"))


def test_the_server_and_its_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "polyhost"
    client.load_model("polyhost/boston.tar.gz")
    assert client.is_model_ready("polyhost/boston.tar.gz", "1")
    metadata = client.get_model_metadata("polyhost/boston.tar.gz")
    assert list(metadata.versions) == ["1"]
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [("input", "FP32", [-1, 6])]
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [("predict", "FP64", [-1])]
    assert "polyhost/boston.tar.gz" in {model.name for model in client.get_model_repository_index().models}
    client.unload_model("polyhost/boston.tar.gz")
    assert "polyhost/boston.tar.gz" not in {model.name for model in client.get_model_repository_index().models}


# What is refused


def tensor(**fields: Any) -> Any:
    """A request of one tensor."""
    raw = fields.pop("raw", None)
    request = service_pb2.ModelInferRequest(model_name=fields.pop("model", "polyhost/boston.tar.gz"))
    contents = fields.pop("contents", {})
    one = request.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1, 6], **fields})
    for field, values in contents.items():
        getattr(one.contents, field).extend(values)
    request.raw_input_contents.extend(raw or [])
    return request


SIX = {"fp32_contents": [1.0] * 6}
REFUSED = {
    "no message": (b"\xff\xff\xff\xff", "INVALID_ARGUMENT", "no message of the Open Inference Protocol"),
    "a name that is no text": (b"\x0a\x01\xff", "INVALID_ARGUMENT", "no message of the Open Inference Protocol"),
    "nothing": (b"", "INVALID_ARGUMENT", ""),
    "no endpoint": (tensor(model="none", contents=SIX), "NOT_FOUND", "Endpoint none of account"),
    "no inputs": (
        service_pb2.ModelInferRequest(model_name="polyhost/boston.tar.gz"), "INVALID_ARGUMENT", "has no inputs",
    ),
    "another version": (
        service_pb2.ModelInferRequest(model_name="polyhost/boston.tar.gz", model_version="7"), "NOT_FOUND",
        "has one version",
    ),
    "another width": (tensor(shape=[2, 3], contents=SIX), "INVALID_ARGUMENT", "the model was trained on 6"),
    "a negative size": (tensor(shape=[-1, 6], contents=SIX), "INVALID_ARGUMENT", "negative or huge size"),
    "a huge size": (tensor(shape=[2**62, 6], contents=SIX), "INVALID_ARGUMENT", "has far more"),
    "no data": (tensor(), "INVALID_ARGUMENT", "has 0 elements"),
    "unknown datatype": (tensor(datatype="FP31", contents=SIX), "INVALID_ARGUMENT", "has the datatype FP31"),
    "beyond the datatype": (
        tensor(datatype="INT8", contents={"int_contents": [300] * 6}), "INVALID_ARGUMENT", "cannot hold",
    ),
    "FP16 in a field": (tensor(datatype="FP16", contents=SIX), "INVALID_ARGUMENT", "comes in raw_input_contents"),
    "too few texts": (
        tensor(datatype="BYTES", contents={"bytes_contents": [b"a"]}), "INVALID_ARGUMENT", "has 1 elements",
    ),
    "raw too short": (tensor(raw=[b"\0" * 23]), "INVALID_ARGUMENT", "has 23 bytes"),
    "raw too many": (tensor(raw=[b"\0" * 24] * 2), "INVALID_ARGUMENT", "2 raw_input_contents for 1 inputs"),
    "raw and a field": (tensor(raw=[b"\0" * 24], contents=SIX), "INVALID_ARGUMENT", "beside raw_input_contents"),
    "millions of outputs": (b"\x32\x00" * 3_000_000, "INVALID_ARGUMENT", "3000000 outputs, 10000 of each are allowed"),
    "millions of inputs": (b"\x2a\x00" * 3_000_000, "INVALID_ARGUMENT", "3000000 inputs"),
    "too large": (tensor(raw=[b"\0" * 20_000_000]), "RESOURCE_EXHAUSTED", "larger than max"),
    "more than SageMaker takes": (tensor(raw=[b"\0" * 6_291_456]), "RESOURCE_EXHAUSTED", "exceeded 6291456 bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_errors_have_codes(server: EndpointServer, port: int, request_: Any, code: str, words: str) -> None:
    content = request_ if isinstance(request_, bytes) else request_.SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(f"/{SERVICE}/ModelInfer")(content, timeout=60)

        error: Any = refused.value
        assert error.code().name == code, error.details()
        assert words in error.details()
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary(f"/{SERVICE}/ModelStreamInfer")(b"", timeout=60)
        assert unknown.value.code().name == "UNIMPLEMENTED"  # type: ignore[attr-defined]


def test_a_models_own_words_are_shortened_to_what_can_be_sent(client: Any) -> None:
    model = "polyhost/complains.tar.gz"
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*é{100}"):
        client.infer(model, [sent(HOUSES)], client_timeout=60)
    answer = client.infer(model, [sent(np.array([[7.0]]))], client_timeout=60)
    assert answer.as_numpy("?a").tolist() == [1.5]


def test_a_model_that_is_not_there(client: Any) -> None:
    for ask in (client.is_model_ready, client.get_model_metadata, client.load_model):
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            ask("polyhost/none.tar.gz")


# Its setting


def test_a_server_without_it_does_not_import_it() -> None:
    code = "import sys, polyhost.server, polyhost.endpoint_server; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_its_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plan: Any = type("Plan", (), {"config": Config.build({"grpc_port": ["9000"]}, {})})
    monkeypatch.delitem(sys.modules, "polyhost.api.open_inference.grpc_server", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)

    with pytest.raises(MissingDependency, match=r"pip install 'polyhost\[grpc\]'"):
        _grpc_fronts(plan, None)  # type: ignore[arg-type]


def test_a_port_that_is_taken_ends_the_start(server: EndpointServer, port: int, samples_folder: Path) -> None:
    command = [sys.executable, "-m", "polyhost", "serve", "--models", samples_folder, "--port", str(free_port()),
               "--grpc-port", str(port)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)

    assert done.returncode == 4
    assert f"cannot listen for gRPC on 127.0.0.1:{port}" in done.stderr
