"""A server called by the Open Inference Protocol: by Triton's client, and by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from conftest import MODELS
from support.endpoint import EndpointServer, packed
from support.server import Answer, Server
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

HOUSES = np.array([[1998, 2150, 3, 2.5, 0.4, 2], [1951, 900, 2, 1.1, 0.1, 0]])
SCRIPT = """
import json

def model_fn(model_dir):
    return None

def input_fn(body, content_type):
    return body.decode() if isinstance(body, bytes) else body, content_type

def predict_fn(data, model):
    return data

def output_fn(data, accept):
    return json.dumps({"body": data[0], "content_type": data[1]})
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Iterator[EndpointServer]:
    folder = tmp_path_factory.mktemp("models")
    for name in ("boston", "houston", "house_network", "house_preprocessor", "house_linear_learner"):
        shutil.copy(samples_folder / f"{name}.tar.gz", folder)
    (folder / "script" / "code").mkdir(parents=True)
    (folder / "script" / "code" / "inference.py").write_text(SCRIPT)
    packed(folder / "script", folder / "deep" / "er" / "script.tar.gz")
    server = EndpointServer("native", folder)
    server.deploy("one", "/boston.tar.gz", Mode="SingleModel")
    yield server
    assert server.stop() == 0, server.process.log


@pytest.fixture
def client(server: EndpointServer) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


def sent(array: np.ndarray[Any, Any], name: str = "x", *, binary: bool = True) -> triton.InferInput:
    one = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    one.set_data_from_numpy(array, binary_data=binary)
    return one


def asked(name: str, *, binary: bool = True) -> triton.InferRequestedOutput:
    return triton.InferRequestedOutput(name, binary_data=binary)


def post(server: Server, path: str, document: Any, **headers: str) -> Answer:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return server.request("POST", f"/v2/{path}", body, **headers)


def house(**more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP64", "shape": [2, 6], "data": HOUSES.tolist()}], **more}


# Predictions: the framework's own, and InvokeEndpoint's


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_xgboost(
    server: EndpointServer, client: Any, samples_folder: Path, dtype: type[np.floating[Any]], binary: bool
) -> None:
    import xgboost

    booster = xgboost.Booster(model_file=samples_folder / "boston" / "xgboost-model")
    rows = HOUSES.astype(dtype)
    result = client.infer(
        "polyhost/boston.tar.gz", [sent(rows, binary=binary)], outputs=[asked("price", binary=binary)]
    )

    expected = booster.predict(xgboost.DMatrix(rows))
    assert result.as_numpy("price").tolist() == expected.tolist()
    csv = "\n".join(",".join(map(repr, row)) for row in rows.tolist())
    assert result.as_numpy("price").tolist() == json.loads(server.predict("boston.tar.gz", csv))


def test_scikit_learn_by_columns(server: EndpointServer, client: Any, samples_folder: Path) -> None:
    """Numbers and texts, a tensor each; and the same as InvokeEndpoint's JSON."""
    import joblib

    model = joblib.load(samples_folder / "house_preprocessor" / "model.joblib")
    rows = [[*HOUSES[0], "y", "n"], [*HOUSES[1], "n", "y"]]
    inputs = [
        sent(np.array([[row[column]] for row in rows], dtype=object if column > 5 else float), f"c{column}")
        for column in range(8)
    ]
    result = client.infer("polyhost/house_preprocessor.tar.gz", inputs).as_numpy("predict")

    np.testing.assert_array_equal(result, model.transform(np.array(rows, dtype=object)))
    answer = server.predict(
        "house_preprocessor.tar.gz", json.dumps(rows), "application/json", Accept="application/json"
    )
    assert result.tolist() == json.loads(answer)


def test_onnx(server: EndpointServer, client: Any, samples_folder: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(samples_folder / "house_network" / "model.onnx")
    rows = HOUSES.astype(np.float32)
    (expected,) = session.run(None, {session.get_inputs()[0].name: rows})

    output = session.get_outputs()[0].name
    result = client.infer("polyhost/house_network.tar.gz", [sent(rows)]).as_numpy(output)
    assert result.shape == expected.shape
    assert result.astype(np.float32).tolist() == expected.tolist()


def test_outputs_of_a_built_in_algorithm_have_names(server: EndpointServer, client: Any) -> None:
    rows = np.array([[0.4, 0.3, -0.2, 0.1, 0, 1, 1, 0]])
    answer = server.predict("house_linear_learner.tar.gz", "0.4,0.3,-0.2,0.1,0,1,1,0", Accept="application/json")

    result = client.infer("polyhost/house_linear_learner.tar.gz", [sent(rows)], outputs=[asked("score")])
    assert result.as_numpy("score").tolist() == [json.loads(answer)["predictions"][0]["score"]]


def test_a_single_model_endpoint_has_its_own_name(client: Any) -> None:
    """Alone in its container XGBoost answers with scores, as SageMaker's does."""
    of_target = client.infer("polyhost/boston.tar.gz", [sent(HOUSES)]).as_numpy("predict")

    assert client.infer("one", [sent(HOUSES)], model_version="1").as_numpy("score").tolist() == of_target.tolist()


def test_scripts_get_what_boto3_sends(server: EndpointServer, client: Any) -> None:
    script = "polyhost/deep/er/script.tar.gz"
    rows = client.infer(script, [sent(np.array([[1.5, np.nan], [-2, 1e30]]))])
    body = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ['{"a": "ä"}']}
    answer = post(server, f"models/{script}/infer", {
        "inputs": [{**body, "parameters": {"content_type": "application/json; charset=utf-8"}}]
    }).json()  # fmt: skip

    assert rows.as_numpy("body").tolist() == [b"1.5,nan\n-2.0,1e+30"]
    assert rows.as_numpy("content_type").tolist() == [b"text/csv"]
    assert [one["data"] for one in answer["outputs"]] == [['{"a": "ä"}'], ["application/json; charset=utf-8"]]


def test_a_request_has_an_id(server: EndpointServer, client: Any) -> None:
    response = client.infer("polyhost/boston.tar.gz", [sent(HOUSES)], request_id="mine").get_response()

    assert (response["id"], response["model_name"], response["model_version"]) == (
        "mine",
        "polyhost/boston.tar.gz",
        "1",
    )
    assert post(server, "models/one/infer", house()).fields["x-amzn-requestid"]


def test_calls_count_in_the_endpoints_metrics_and_log(server: EndpointServer, client: Any) -> None:
    client.infer("polyhost/houston.tar.gz", [sent(HOUSES)])

    assert "target=houston.tar.gz status=200" in server.process.wait_for_line("target=houston.tar.gz")


# The server and its models


def test_the_server_tells_of_itself(server: EndpointServer, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata["name"] == "polyhost"
    assert set(metadata["extensions"]) == {"binary_tensor_data", "model_repository"}


def test_models_are_loaded_and_unloaded(client: Any) -> None:
    def loaded() -> set[str]:
        return {model["name"] for model in client.get_model_repository_index()}

    client.load_model("polyhost/houston.tar.gz")
    assert {"one", "polyhost/houston.tar.gz"} <= loaded()
    client.unload_model("polyhost/houston.tar.gz")
    assert "polyhost/houston.tar.gz" not in loaded()
    assert client.is_model_ready("polyhost/houston.tar.gz")  # a request loads it
    assert client.is_model_ready("one", "1")
    assert client.get_model_metadata("one")["versions"] == ["1"]
    for name in ("polyhost/none.tar.gz", "polyhost", "none"):
        assert not client.is_model_ready(name)


def test_models_tell_what_they_take_and_answer(client: Any, samples_folder: Path) -> None:
    """Of a compiled model, too, which no worker has; of a script nothing."""
    import onnxruntime
    import xgboost

    def both(name: str) -> tuple[list[Any], list[Any]]:
        client.load_model(name)
        metadata = client.get_model_metadata(name)
        return metadata["inputs"], metadata["outputs"]

    session = onnxruntime.InferenceSession(samples_folder / "house_network" / "model.onnx")
    ((its_input,), (its_output,)) = session.get_inputs(), session.get_outputs()
    ((taken,), (answered,)) = both("polyhost/house_network.tar.gz")
    assert taken == {"name": its_input.name, "datatype": "FP32", "shape": [-1, its_input.shape[1]]}
    assert (answered["name"], answered["datatype"]) == (its_output.name, "FP64")
    booster = xgboost.Booster(model_file=samples_folder / "boston" / "xgboost-model")
    assert both("polyhost/boston.tar.gz") == (
        [{"name": "input", "datatype": "FP32", "shape": [-1, booster.num_features()]}],
        [{"name": "predict", "datatype": "FP64", "shape": [-1]}],
    )
    assert both("polyhost/deep/er/script.tar.gz") == ([], [])
    client.unload_model("polyhost/boston.tar.gz")
    assert client.get_model_metadata("polyhost/boston.tar.gz")["inputs"] == []


def test_models_of_a_container(client: Any) -> None:
    """Without an endpoint they have the names that MMS's API gave them."""
    server = Server("native", environ={"SAGEMAKER_MULTI_MODEL": "true"})
    try:
        name = "a/b ä"
        document = {"parameters": {"url": str(MODELS / "echo")}}
        path = "a%2Fb%20%C3%A4"
        assert post(server, f"repository/models/{path}/load", document).status == 200
        assert server.names() == [name]
        assert post(server, "repository/index", {}).json() == [
            {"name": name, "version": "1", "state": "READY", "reason": ""}
        ]
        answer = post(server, f"models/{path}/infer", house())
        assert (answer.status, answer.json()["model_name"]) == (200, name)
        assert server.request("GET", f"/v2/models/{path}/ready").json() == {"name": name, "ready": True}
        assert post(server, f"repository/models/{path}/unload", {}).status == 200
        for gone in (
            post(server, f"models/{path}/infer", house()),
            server.request("GET", f"/v2/models/{path}"),
            post(server, f"repository/models/{path}/unload", {}),
        ):
            assert (gone.status, [*gone.json()]) == (404, ["error"])
        assert post(server, "models/x/infer", b" " * 20_000_000).json().keys() == {"error"}
        assert "/v2/models/{model_name}/infer" in server.request("GET", "/api-description").json()["paths"]
    finally:
        assert server.stop() == 0, server.process.log


def test_behind_fronts(samples_folder: Path) -> None:
    """They answer rows of a model that they know themselves, but no row that comes in the place of a tensor."""
    row = ",".join(map(str, HOUSES[0]))
    server = Server("native", ["--fronts", "2"], {"SAGEMAKER_MULTI_MODEL": "true"})
    try:
        with server.loaded("boston", samples_folder / "boston") as invoke:
            for _ in range(20):
                answer = post(server, "models/boston/infer", house())
                assert answer.json()["outputs"][0]["data"][:1] == invoke(row).json()
                answer = post(server, "models/boston/infer", row.encode(), Content_Type="text/csv")
                assert (answer.status, [*answer.json()]) == (400, ["error"])
    finally:
        assert server.stop() == 0, server.process.log


# What is refused

BOSTON = "models/polyhost/boston.tar.gz/infer"
REFUSED = {
    "no endpoint": (404, "models/none/infer", house(), "Endpoint none of account"),
    "no target": (400, "models/polyhost/infer", house(), "multi-model endpoint"),
    "a target too many": (400, "models/one/a.tar.gz/infer", house(), "not a multi-model endpoint"),
    "no archive": (404, "models/polyhost/none.tar.gz/infer", house(), "Failed to download model data"),
    "out of the folder": (400, "models/polyhost/../a/infer", house(), "cannot be the name of a model"),
    "another version": (404, "models/one/versions/2/infer", house(), "A model has one version here, 1"),
    "another output": (400, BOSTON, house(outputs=[{"name": "a"}, {"name": "b"}]), "The model has no output a"),
    "another width": (400, BOSTON, {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 2], "data": [1, 2]}]},
                      "Each row has 2 features, the model was trained on 6."),
    "too many outputs": (400, BOSTON, house(outputs=[{"name": str(number)} for number in range(10_001)]),
                         "asks for 10001 outputs, 10000 of each are allowed"),
    "texts": (400, BOSTON, {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}, "a"),
    "no request": (400, BOSTON, b"{", "The body is no inference request"),
    "nothing": (400, BOSTON, b"", "The body is no inference request"),
    "nothing to load": (404, "repository/models/polyhost/none.tar.gz/load", {}, "Failed to download model data"),
    "no such endpoint to load": (404, "repository/models/none/load", {}, "Endpoint none of account"),
    "not loaded": (400, "repository/models/polyhost/none.tar.gz/unload", {}, "is not loaded"),
    "no parameters": (200, "repository/models/polyhost/boston.tar.gz/load", b"", ""),
}  # fmt: skip


@pytest.mark.parametrize(("status", "path", "document", "words"), REFUSED.values(), ids=REFUSED)
def test_errors_are_the_protocols(server: EndpointServer, status: int, path: str, document: Any, words: str) -> None:
    answer = post(server, path, document)

    assert answer.status == status, answer.text
    if status != 200:
        assert [*answer.json()] == ["error"]
        assert words in answer.json()["error"]


def test_compressed_bodies_are_refused(server: EndpointServer, client: Any) -> None:
    with pytest.raises(InferenceServerException, match="send it without compression"):
        client.infer("one", [sent(HOUSES)], request_compression_algorithm="gzip")


def test_bodies_have_sagemakers_limit(server: EndpointServer, client: Any) -> None:
    """What a tensor becomes may be larger than what was sent."""
    rows = np.resize(HOUSES.astype(np.float32), (260_000, 6)) + np.float32(0.1)
    assert rows.nbytes < 6_291_456 < rows.nbytes + 100_000
    small = client.infer("one", [sent(rows[:2])]).as_numpy("score")

    np.testing.assert_array_equal(client.infer("one", [sent(rows)]).as_numpy("score")[:2], small)
    for length in (6_291_457, 20_000_000):
        answer = post(server, "models/one/infer", b" " * length)
        assert (answer.status, [*answer.json()]) == (413, ["error"])


def test_other_sites_pages_may_not_call(server: EndpointServer) -> None:
    answer = post(server, "models/one/infer", house(), Origin="https://evil.example")

    assert (answer.status, [*answer.json()]) == (403, ["error"])
