"""InvokeEndpoint of a served folder, by boto3 and curl's way, on every engine."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore import xform_name
from botocore.exceptions import ClientError
from conftest import ENGINES, Servers
from support.endpoint import EndpointServer, packed
from support.server import Answer

HOUSE = "1998,2150,3,2.5,0.4,2"
SCRIPT = """
import json, os

def model_fn(model_dir):
    return open(os.path.join(model_dir, "answer.txt")).read()

def input_fn(body, content_type):
    return body.decode() if isinstance(body, bytes) else body

def predict_fn(data, model):
    if data == "fail":
        raise ValueError("it was told to fail")
    return data

def output_fn(prediction, accept):
    seen = sorted(name for name in os.environ if name.startswith("AWS_"))
    return json.dumps({"got": prediction, "accept": accept, "env": seen})
"""


@pytest.fixture(scope="module", params=ENGINES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Path:
    """Archives in a folder, some below it; a fresh one for each engine."""
    folder = tmp_path_factory.mktemp(f"models-{request.param}")
    for name in ("houston", "boston"):
        shutil.copy(samples_folder / f"{name}.tar.gz", folder / f"{name}.tar.gz")
    (folder / "north" / "Zürich").mkdir(parents=True)
    shutil.copy(samples_folder / "boston.tar.gz", folder / "north" / "Zürich" / "boston.tar.gz")
    script = tmp_path_factory.mktemp("script")
    (script / "code").mkdir()
    (script / "code" / "inference.py").write_text(SCRIPT)
    (script / "answer.txt").write_text("42")
    packed(script, folder / "script.tar.gz")
    (folder / "text.tar.gz").write_text("this is no archive")
    (folder / ".engine").write_text(request.param)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, servers: Servers) -> Iterator[EndpointServer]:
    servers.stop()  # there is one MMS a machine
    environ = {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}
    server = EndpointServer((folder / ".engine").read_text(), folder, environ=environ)
    yield server
    assert server.stop() == 0, server.process.log


def invoke(server: EndpointServer, target: str | None, body: str = HOUSE, **headers: str) -> Answer:
    """As curl asks."""
    named = {"Content_Type": "text/csv", **headers}
    if target is not None:
        named["X_Amzn_SageMaker_Target_Model"] = target
    return server.request("POST", "/invocations", body, **named)


def error_of(server: EndpointServer, **arguments: object) -> tuple[str, ClientError]:
    """boto3's exception: its class's name, and itself."""
    given = {"EndpointName": "polyhost", "Body": HOUSE, "ContentType": "text/csv", **arguments}
    with pytest.raises(ClientError) as caught:
        server.client("sagemaker-runtime").invoke_endpoint(**given)
    return type(caught.value).__name__, caught.value


def test_boto3_is_answered_by_the_model_it_names(server: EndpointServer) -> None:
    """With the headers that SageMaker sends."""
    answer = server.client("sagemaker-runtime").invoke_endpoint(
        EndpointName="polyhost", TargetModel="houston.tar.gz", ContentType="text/csv", Accept="application/json",
        Body=HOUSE, CustomAttributes="c", InferenceId="i", TargetVariant="AllTraffic",
    )  # fmt: skip
    assert len(json.loads(answer["Body"].read())) == 1
    assert answer["ContentType"] == "application/json"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["ResponseMetadata"]["RequestId"]


def test_models_answer_each_with_its_own_numbers(server: EndpointServer, folder: Path) -> None:
    """Also those below folders with names that are not ASCII, and new ones at once."""
    boston = server.predict("boston.tar.gz", HOUSE)
    assert boston != server.predict("houston.tar.gz", HOUSE)
    assert server.predict("north/Z%C3%BCrich/boston.tar.gz".replace("%C3%BC", "ü"), HOUSE) == boston
    shutil.copy(folder / "houston.tar.gz", folder / "new.tar.gz")
    assert server.predict("new.tar.gz", HOUSE) == server.predict("houston.tar.gz", HOUSE)


def test_a_slash_before_a_target_is_taken_and_left_out(server: EndpointServer) -> None:
    """As SageMaker takes it: model, log and measures are those of the name without it."""
    assert server.predict("/north/Zürich/boston.tar.gz", HOUSE) == server.predict("boston.tar.gz", HOUSE)
    server.predict("/script.tar.gz", "hello", Accept="application/json")
    server.process.wait_for_line("target=script.tar.gz ")
    assert "target=/" not in server.process.log
    assert 'model="/' not in server.request("GET", "/metrics").text


def test_curl_needs_one_header(server: EndpointServer) -> None:
    """The one that SageMaker puts on what it sends to a container."""
    answer = invoke(server, "boston.tar.gz")
    assert answer.status == 200
    assert answer.text == server.predict("boston.tar.gz", HOUSE)
    assert answer.fields["x-amzn-invoked-production-variant"] == "AllTraffic"


def test_a_models_error_is_boto3s_model_error(server: EndpointServer) -> None:
    """With the status and words of the container."""
    name, error = error_of(server, TargetModel="boston.tar.gz", Body="one,two")
    assert name == "ModelError"
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert error.response["OriginalStatusCode"] == 415
    assert "one" in error.response["OriginalMessage"]
    assert error.response["Error"]["Message"].startswith("Received client error (415) from model with message ")
    assert error.response["LogStreamArn"].startswith("arn:aws:logs:")


def test_a_scripts_failure_is_a_server_error_of_the_model(server: EndpointServer) -> None:
    """Without a traceback."""
    name, error = error_of(server, TargetModel="script.tar.gz", Body="fail")
    assert name == "ModelError"
    assert error.response["OriginalStatusCode"] >= 500
    assert "Traceback" not in str(error)


def test_models_see_no_credentials_and_no_signature(server: EndpointServer) -> None:
    """Neither the server's nor the client's."""
    answer = json.loads(server.predict("script.tar.gz", "hello", Accept="application/json"))
    assert answer["got"] == "hello"
    assert answer["env"] == ["AWS_REGION"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nothing.tar.gz", "Failed to download model data"),
        ("../boston.tar.gz", "cannot be the name of a model"),
        ("/etc/passwd", "Failed to download model data"),
        ("//boston.tar.gz", "cannot be the name of a model"),
        ("/../boston.tar.gz", "cannot be the name of a model"),
        ("a//b.tar.gz", "cannot be the name of a model"),
        ("text.tar.gz", "Failed to extract model data archive"),
        ("north", "north"),
        ("a\tb", "cannot be the name of a model"),
    ],
)
def test_a_bad_target_is_a_validation_error(server: EndpointServer, target: str, words: str) -> None:
    """Whose sentence says what to change."""
    name, error = error_of(server, TargetModel=target)
    assert (name, error.response["Error"]["Code"]) == ("ValidationError", "ValidationError")
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert words in error.response["Error"]["Message"]


def test_what_botocore_would_not_send_is_refused(server: EndpointServer) -> None:
    """By anybody who writes HTTP by hand."""
    too_long = invoke(server, "x" * 1025)
    assert (too_long.status, too_long.fields["x-amzn-errortype"]) == (400, "ValidationError")
    no_target = invoke(server, None)
    assert "TargetModel" in no_target.json()["Message"]
    not_utf8 = invoke(server, "b\xff")
    assert (not_utf8.status, not_utf8.fields["x-amzn-errortype"]) == (400, "ValidationError")


# Bodies that are too large


def sent(server: EndpointServer, path: str, size: int, *, is_chunked: bool = False, **headers: str) -> Answer:
    """A client that sends all before it reads, as most do."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body: bytes | Iterator[bytes] = bytes(size)
    if is_chunked:
        body = (bytes(65_536) for _ in range(size // 65_536))
        headers["Transfer-Encoding"] = "chunked"
    try:
        connection.request("POST", path, body, headers, encode_chunked=is_chunked)
        response = connection.getresponse()
        return Answer(response.status, tuple(response.getheaders()), response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("size", [6_291_457, 6_553_501, 8_000_000, 64_000_000])
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_body_over_the_limit_is_told_so(server: EndpointServer, size: int, connection: str) -> None:
    """In AWS's words, a little over it and far: the client can read them although much of its body was not wanted."""
    for path in ("/endpoints/polyhost/invocations", "/invocations"):
        answer = sent(server, path, size, Connection=connection)
        assert (answer.status, answer.fields["x-amzn-errortype"]) == (413, "ValidationError")
        assert answer.json()["Message"] == "HTTP content length exceeded 6291456 bytes: send less in each request."
        assert answer.fields["x-amzn-requestid"]


@pytest.mark.parametrize("size", [6_553_501, 64_000_000])
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_body_over_the_containers_limit_is_told_so(server: EndpointServer, size: int, connection: str) -> None:
    """On the routes of Multi Model Server, in its JSON."""
    for path in ("/models/any/invoke", "/predictions/any", "/models"):
        answer = sent(server, path, size, Connection=connection)
        assert (answer.status, answer.json()["type"]) == (413, "RequestEntityTooLargeException")
        assert "may have 6553500 bytes" in answer.message


def test_a_body_of_unknown_length_over_the_limit_is_told_so(server: EndpointServer) -> None:
    """Sent in chunks; and by clients of the control plane, of STS and of the dashboard, each in its own form."""
    answer = sent(server, "/endpoints/polyhost/invocations", 32_000_000, is_chunked=True)
    assert (answer.status, answer.fields["x-amzn-errortype"]) == (413, "ValidationError")
    assert "6291456 bytes" in answer.json()["Message"]
    assert "6553500" in sent(server, "/models/any/invoke", 32_000_000, is_chunked=True).message
    control_plane = sent(server, "/", 32_000_000, **{"X-Amz-Target": "SageMaker.CreateModel"})
    assert (control_plane.status, control_plane.json()["__type"]) == (413, "RequestEntityTooLargeException")
    assert "bytes at most" in control_plane.json()["message"]
    assert "6553500 bytes" in sent(server, "/dashboard/login", 32_000_000).json()["Message"]
    assert "<Message>HTTP content length exceeded 6553500 bytes" in sent(server, "/", 32_000_000).text


def test_boto3_reads_what_is_said_of_a_large_body(server: EndpointServer) -> None:
    """And the next call on the same client is answered."""
    client = server.client("sagemaker-runtime")
    call = {"EndpointName": "polyhost", "TargetModel": "boston.tar.gz", "ContentType": "text/csv"}
    for size in (6_291_457, 64_000_000):
        with pytest.raises(client.exceptions.ValidationError, match="HTTP content length exceeded 6291456 bytes"):
            client.invoke_endpoint(Body=bytes(size), **call)
        assert client.invoke_endpoint(Body=HOUSE, **call)["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_a_client_that_asks_first_need_not_send_its_body(server: EndpointServer) -> None:
    """`Expect: 100-continue` is answered 413 at once."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: here\r\nContent-Length: 64000000\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"exceeded 6291456 bytes" in answer


def test_what_is_not_there_is_said(server: EndpointServer) -> None:
    """Endpoints, variants, and calls that an endpoint does not have."""
    name, error = error_of(server, EndpointName="other", TargetModel="boston.tar.gz")
    assert name == "ValidationError"
    assert "Endpoint other of account 000000000000 not found." in str(error)
    _, error = error_of(server, TargetModel="boston.tar.gz", TargetVariant="B")
    assert "it has AllTraffic" in str(error)
    _, error = error_of(server, TargetModel="boston.tar.gz", TargetContainerHostname="a")
    assert "TargetContainerHostname is not supported" in str(error)
    assert server.request("GET", "/endpoints/polyhost/invocations").status in (404, 405)


def test_other_operations_of_the_runtime_are_refused_by_name(server: EndpointServer) -> None:
    """All that botocore knows, and what it does not know yet."""
    client = server.client("sagemaker-runtime")
    model = client.meta.service_model
    here = {"InvokeEndpoint", "InvokeEndpointAsync", "InvokeEndpointWithResponseStream"}
    assert here <= set(model.operation_names)
    for operation in set(model.operation_names) - here:
        required = model.operation_model(operation).input_shape.required_members
        with pytest.raises(client.exceptions.ValidationError, match="is not an operation of Polyhost"):
            getattr(client, xform_name(operation))(**dict.fromkeys(required, "polyhost"))
    answer = server.request("POST", "/endpoints/polyhost/invocations-from-tomorrow", HOUSE)
    assert (answer.status, answer.fields["x-amzn-errortype"]) == (400, "ValidationError")
    assert "/endpoints/NAME/invocations-from-tomorrow is not an operation of Polyhost" in answer.json()["Message"]


def test_mmss_own_routes_are_there_too(server: EndpointServer, samples_folder: Path) -> None:
    """What is loaded by hand is invoked by hand, and listed."""
    with server.loaded("by-hand", samples_folder / "denver") as by_hand:
        assert by_hand(HOUSE).status == 200
        assert "by-hand" in server.names()
    assert server.request("GET", "/ping").json() == {"status": "Healthy"}


def put(archive: Path, target: Path) -> None:
    """Whoever looks meanwhile sees no half of it."""
    shutil.copy(archive, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)


def test_an_overwritten_archive_is_served_after_a_refresh(server: EndpointServer, folder: Path) -> None:
    """On demand; a deleted one is not served any more."""
    target = folder / "changing.tar.gz"
    put(folder / "boston.tar.gz", target)
    boston = server.predict("changing.tar.gz", HOUSE)
    put(folder / "houston.tar.gz", target)
    assert server.request("POST", "/refresh").status == 200
    houston = server.predict("houston.tar.gz", HOUSE)
    answers = {boston}
    while houston not in answers:  # swapped in by itself: no request makes it, none fails
        answers.add(server.predict("changing.tar.gz", HOUSE))
    assert answers == {boston, houston}
    target.unlink()
    server.request("POST", "/refresh")
    name, _ = error_of(server, TargetModel="changing.tar.gz")
    assert name == "ValidationError"


def test_metrics_count_it_all(server: EndpointServer) -> None:
    """With the endpoint's and the variant's name."""
    server.predict("boston.tar.gz", HOUSE)
    text = server.request("GET", "/metrics").text
    assert 'polyhost_invocations_total{endpoint="polyhost",variant="AllTraffic"}' in text
    assert "polyhost_loaded_model_count" in text
