"""gRPC under access control, rate limits and TLS: what REST's callers may, its callers may, and in the same words."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from polyhost.api.http import Request
from polyhost.api.open_inference.api import OpenInference, actions_of_endpoints
from polyhost.api.open_inference.grpc_callers import ROUTES, address_of, request_of
from polyhost.api.open_inference.grpc_messages import SERVICE
from polyhost.api.routes import Routes
from support.endpoint import EndpointServer
from support.principals import ANNA, CARLS_KEY, document, policy
from support.server import free_port
from support.signing import signed
from support.tree import wait_until
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

MODEL = "polyhost/boston.tar.gz"
HOUSES = np.array([[1998, 2150, 3, 2.5, 0.4, 2]])
# Users with nothing but a key: one has no policies, one may ask twice, one may ask one model.
DORAS_KEY, EMILS_KEY, FRIDAS_KEY = "phk_of-dora", "phk_of-emil", "phk_of-frida"


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


# What a call is in REST


@pytest.mark.parametrize("name", ROUTES)
def test_a_call_stands_for_the_rest_route_that_does_the_same(name: str) -> None:
    nothing: Any = None
    api = OpenInference(
        nothing, nothing, nothing, max_request_bytes=1, name_part="{model_name...}", actions=actions_of_endpoints(),
        id_field=b"",
    )  # fmt: skip
    found = Routes(api.routes(), lambda path: path.split("/")[1:]).find(request_of(name, (), ""))

    assert found is not None
    assert found[0].operation is not None
    operation = (name[0].lower() + name[1:]).replace("repositoryModel", "repository")
    assert found[0].operation.description["operationId"] == operation


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:51234", "192.0.2.7"), ("ipv6:%5B2001:db8::1%5D:51234", "2001:db8::1"),
        ("ipv6:[::1]:1", "::1"), ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0"), ("unix:/tmp/a:b", ""), ("unix:", ""),
        ("", ""), ("ipv4:", ""),
    ],
)  # fmt: skip
def test_a_clients_address(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_metadata_are_header_fields() -> None:
    """None of two keys counts: another part of the way may have looked at the other one."""
    metadata = [("authorization", "Bearer a"), ("x-bin", b"\0"), ("user-agent", "grpc"), ("authorization", "Bearer b")]
    headers = {"authorization": "Bearer a,Bearer b", "user-agent": "grpc"}
    expected = Request("POST", "/v2/models/-/infer", "", headers, b"", "192.0.2.7")
    assert request_of("ModelInfer", metadata, "ipv4:192.0.2.7:1") == expected


# A server with access control, by TLS


def make_certificate(folder: Path, name: str) -> bytes:
    """A certificate in NAME.pem, its key in NAME.key. Returns the certificate."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / f"{name}.key",
         "-out", folder / f"{name}.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return (folder / f"{name}.pem").read_bytes()


def users() -> dict[str, Any]:
    content = document()
    only_boston = {"StringEquals": {"sagemaker:TargetModel": "boston.tar.gz"}}
    one_model = policy(Action="sagemaker:InvokeEndpoint", Condition=only_boston)
    limit = {"requests_per_sec": 0.001, "burst": 2}
    for name, key, more in (
        ("dora", DORAS_KEY, {}), ("emil", EMILS_KEY, {"policies": [policy()], "rate_limit": limit}),
        ("frida", FRIDAS_KEY, {"policies": [one_model]}),
    ):  # fmt: skip
        hashed = "sha256:" + hashlib.sha256(key.encode()).hexdigest()
        content["users"].append({"name": name, "api_keys": [hashed], **more})
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("grpc")
    (folder / "models").mkdir()
    for name in ("boston", "house_preprocessor"):
        shutil.copy(samples_folder / f"{name}.tar.gz", folder / "models")
    (folder / "users.json").write_text(json.dumps(users()))
    (folder / "users.json").chmod(0o600)
    make_certificate(folder, "used")
    return folder


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(folder: Path, port: int) -> Iterator[EndpointServer]:
    server = EndpointServer(
        "native", folder / "models", "--grpc-port", str(port), "--auth", "sigv4", "--auth-file",
        f"{folder}/users.json", "--tls-cert", f"{folder}/used.pem", "--tls-key", f"{folder}/used.key",
    )  # fmt: skip
    server.process.wait_for_line("ready for gRPC on")
    yield server
    assert server.stop() == 0, server.process.log


@pytest.fixture
def client(server: EndpointServer, port: int, folder: Path) -> Iterator[Any]:
    certificate = str(folder / "used.pem")
    with triton.InferenceServerClient(f"localhost:{port}", ssl=True, root_certificates=certificate) as client:
        yield client


def infer(client: Any, model: str = MODEL, key: str = CARLS_KEY) -> Any:
    house = triton.InferInput("x", list(HOUSES.shape), "FP64")
    house.set_data_from_numpy(HOUSES)
    return client.infer(model, [house], headers={"authorization": f"Bearer {key}"}).as_numpy("predict")


def code_and_words(call: Any) -> tuple[str, str]:
    """Of the error that the call ends with."""
    with pytest.raises(InferenceServerException) as refused:
        call()
    return refused.value.status().removeprefix("StatusCode."), refused.value.message()


def rest(server: EndpointServer, folder: Path, method: str, path: str, authorization: str | None) -> tuple[int, str]:
    """Status and words of an error."""
    trusted = ssl.create_default_context(cafile=str(folder / "used.pem"))
    connection = http.client.HTTPSConnection("localhost", server.port, context=trusted, timeout=60)
    connection.request(method, path, headers={"authorization": authorization} if authorization else {})
    answer = connection.getresponse()
    words = json.loads(answer.read()).get("error", "")
    connection.close()
    return answer.status, words


def test_who_brings_a_key_is_its_user(client: Any) -> None:
    assert infer(client).shape == (1,)
    assert infer(client, key=FRIDAS_KEY).tolist() == infer(client).tolist()


def test_health_needs_nothing(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


CALLS: dict[str, tuple[Any, str, str]] = {
    "ServerMetadata": (lambda client, its: client.get_server_metadata(headers=its), "GET", "/v2"),
    "ModelMetadata": (lambda client, its: client.get_model_metadata(MODEL, headers=its), "GET", f"/v2/models/{MODEL}"),
    "ModelReady": (lambda client, its: client.is_model_ready(MODEL, headers=its), "GET", f"/v2/models/{MODEL}/ready"),
    "RepositoryIndex": (
        lambda client, its: client.get_model_repository_index(headers=its), "POST", "/v2/repository/index",
    ),
    "RepositoryModelLoad": (
        lambda client, its: client.load_model(MODEL, headers=its), "POST", f"/v2/repository/models/{MODEL}/load",
    ),
    "RepositoryModelUnload": (
        lambda client, its: client.unload_model(MODEL, headers=its), "POST", f"/v2/repository/models/{MODEL}/unload",
    ),
    "ModelInfer": (
        lambda client, its: client.infer(MODEL, [], headers=its), "POST", f"/v2/models/{MODEL}/infer",
    ),
}  # fmt: skip


def test_all_calls_but_health_are_asked() -> None:
    assert set(CALLS) | {"ServerLive", "ServerReady"} == set(ROUTES)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("authorization", "code"),
    [(None, "UNAUTHENTICATED"), ("Bearer phk_of-nobody", "UNAUTHENTICATED"), ("Bearer", "UNAUTHENTICATED"),
     (f"Bearer {DORAS_KEY}", "PERMISSION_DENIED")],
    ids=["no-key", "wrong-key", "empty-key", "no-policy"],
)  # fmt: skip
def test_refusals_are_rests(
    server: EndpointServer, client: Any, folder: Path, name: str, authorization: str | None, code: str
) -> None:
    call, method, path = CALLS[name]
    headers = {"authorization": authorization} if authorization else None
    status, words = rest(server, folder, method, path, authorization)

    assert code_and_words(lambda: call(client, headers)) == (code, words)
    assert status == 403
    assert words


def test_conditions_on_the_target_hold(client: Any) -> None:
    code, words = code_and_words(lambda: infer(client, "polyhost/house_preprocessor.tar.gz", FRIDAS_KEY))
    assert code == "PERMISSION_DENIED"
    assert "user/frida is not authorized to perform: sagemaker:InvokeEndpoint" in words


@pytest.mark.parametrize("name", CALLS)
def test_a_signature_is_refused_in_a_sentence(client: Any, name: str) -> None:
    """Also one that REST would take, of the request that stands for the call."""
    method, path = ROUTES[name]
    wire = signed(f"https://localhost{path}", method=method, body=b"", **ANNA)
    headers = {name: wire.headers[name] for name in ("authorization", "x-amz-date")}
    code, words = code_and_words(lambda: CALLS[name][0](client, headers))
    assert code == "UNAUTHENTICATED"
    assert words.startswith("Calls by gRPC are not signed: send an API key in the metadata, `authorization: Bearer")


def test_calls_by_both_count_for_the_same_limit(server: EndpointServer, client: Any, folder: Path) -> None:
    key = f"Bearer {EMILS_KEY}"
    status, _ = rest(server, folder, "GET", "/v2", key)
    assert status == 200
    infer(client, key=EMILS_KEY)
    status, words = rest(server, folder, "GET", "/v2", key)
    assert status == 429
    assert words.startswith("Rate exceeded: ")
    assert code_and_words(lambda: infer(client, key=EMILS_KEY)) == ("RESOURCE_EXHAUSTED", words)


def test_a_renewed_certificate_is_shown_without_a_restart(server: EndpointServer, port: int, folder: Path) -> None:
    """The last test of this server: the others trust its first certificate."""
    used = (folder / "used.pem").read_bytes()
    assert ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("localhost", port))) == der(used)
    with grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(used)) as channel:
        live = channel.unary_unary(f"/{SERVICE}/ServerLive")
        assert live(b"", timeout=60)
        other = make_certificate(folder, "other")
        for ending in ("key", "pem"):
            os.replace(folder / f"other.{ending}", folder / f"used.{ending}")
        server.process.send(signal.SIGHUP)
        wait_until(lambda: "the certificate was renewed" in server.process.log, 30, "the renewal")
        assert ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("localhost", port))) == der(other)
        assert live(b"", timeout=60)  # who is connected stays so
    trusted = grpc.ssl_channel_credentials(other)
    with grpc.secure_channel(f"localhost:{port}", trusted, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        live = channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=60)
    assert service_pb2.ServerLiveResponse.FromString(live).live
    with grpc.insecure_channel(f"localhost:{port}") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=60)


def der(certificate: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.decode())


# A server for everybody


def test_an_address_is_limited_over_both(folder: Path) -> None:
    """Probes are not counted. What is refused is counted in the metrics, as REST's is."""
    port = free_port()
    server = EndpointServer("native", folder / "models", "--grpc-port", str(port), "--rate-limit", "0.001:3")
    server.process.wait_for_line("ready for gRPC on")
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert server.request("GET", "/v2").status == 200
            infer(client)
            assert client.get_server_metadata().name == "polyhost"
            assert client.is_server_live()
            words = server.request("GET", "/v2").json()["error"]
            assert words.startswith("Rate exceeded: 127.0.0.1 may make 0.001 requests per second, 3 at once.")
            assert code_and_words(lambda: infer(client)) == ("RESOURCE_EXHAUSTED", words)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/{SERVICE}/ServerMetadata")(b"", timeout=60)
            trailing = dict(refused.value.trailing_metadata())  # type: ignore[attr-defined]
            assert 900 < int(trailing["retry-after"]) <= 1000
        metrics = server.request("GET", "/metrics").text
        counted = re.findall(r"^polyhost_invocation_4xx_errors_total\{.*\} (\S+)$", metrics, re.MULTILINE)
        assert sum(map(float, counted)) == 1  # the inference, and nothing else
    finally:
        assert server.stop() == 0, server.process.log
