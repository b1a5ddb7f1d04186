"""
Answers have limits: MMS's for a container, SageMaker's for an endpoint, and what a worker may send at all.

Large requests come whole.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import psutil
import pytest
from botocore.exceptions import ClientError
from support.endpoint import EndpointServer, packed

CONTAINERS_LIMIT = 7_000_000
ENDPOINTS_LIMIT = 6_291_456
SCRIPT = """
import hashlib, os, stat, struct

def model_fn(model_dir):
    return os.getpid()

def transform_fn(model, body, content_type, accept):
    if body == b"pid":
        return str(model), "text/plain"
    if body[:3] == b"end":
        os._exit(1)
    if len(body) > 1_000_000:
        return hashlib.sha256(body).hexdigest(), "text/plain"
    if body != b"flood":
        return b"a" * int(body), "text/plain"
    sockets = [n for n in range(3, 64) if os.path.exists(f"/proc/self/fd/{n}") and stat.S_ISSOCK(os.fstat(n).st_mode)]
    for number in sockets:
        os.write(number, struct.pack("<I", 600_000_000))
        for _ in range(600):
            os.write(number, bytes(1_000_000))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointServer]:
    folder = tmp_path_factory.mktemp("large")
    (folder / "model" / "code").mkdir(parents=True)
    (folder / "model" / "code" / "inference.py").write_text(SCRIPT)
    packed(folder / "model", folder / "models" / "large.tar.gz")
    server = EndpointServer("native", folder / "models", environ={"MMS_MAX_RESPONSE_SIZE": str(CONTAINERS_LIMIT)})
    try:
        assert server.load("large", folder / "model").status == 200
        yield server
    finally:
        server.kill()


def pid(server: EndpointServer) -> str:
    return server.invoke("large", "pid", content_type="text/plain").text


def test_a_container_s_answer_has_mms_s_limit(server: EndpointServer) -> None:
    """Other than with MMS, its worker goes on."""
    before = pid(server)
    assert len(server.invoke("large", str(CONTAINERS_LIMIT), content_type="text/plain").body) == CONTAINERS_LIMIT
    answer = server.invoke("large", str(CONTAINERS_LIMIT + 1), content_type="text/plain")
    assert answer.status == 500
    assert answer.message.startswith("The model's answer has 7000001 bytes, 7000000 are allowed")
    assert pid(server) == before


def test_an_endpoint_s_answer_has_sagemaker_s_limit(server: EndpointServer) -> None:
    assert len(server.predict("large.tar.gz", str(ENDPOINTS_LIMIT), "text/plain")) == ENDPOINTS_LIMIT
    for length in (ENDPOINTS_LIMIT + 1, CONTAINERS_LIMIT + 1):  # the second is too long for the container, too
        with pytest.raises(ClientError) as caught:
            server.predict("large.tar.gz", str(length), "text/plain")
        said = caught.value.response
        assert (said["Error"]["Code"], said["ResponseMetadata"]["HTTPStatusCode"]) == ("ModelError", 424)
        assert said["OriginalStatusCode"] == 500  # type: ignore[typeddict-item]
        assert f"The model's answer has {length} bytes" in said["OriginalMessage"]  # type: ignore[typeddict-item]


def test_code_that_writes_to_its_socket_ends_with_one_answer(server: EndpointServer) -> None:
    """The front keeps nothing of it, and the next call has a new worker."""
    before = pid(server)
    front = psutil.Process(server.process.pid)
    used_bytes = front.memory_info().rss
    answer = server.invoke("large", "flood", content_type="text/plain")
    assert answer.status == 500
    assert answer.message.startswith("The model's answer has 600000000 bytes, 7000000 are allowed")
    assert front.memory_info().rss - used_bytes < 100_000_000
    assert pid(server) != before


def sent(server: EndpointServer, body: bytes) -> str:
    return server.invoke("large", body, content_type="application/octet-stream").text


@pytest.mark.parametrize("length", [65_536 * 16, 2_000_000, 5_000_000])
def test_a_large_request_comes_whole(server: EndpointServer, length: int) -> None:
    body = b"b" + random.Random(length).randbytes(length)
    assert sent(server, body) == hashlib.sha256(body).hexdigest()
    assert server.predict("large.tar.gz", body, "application/octet-stream") == hashlib.sha256(body).hexdigest()


def test_a_worker_that_ends_with_a_large_request_costs_that_one_alone(server: EndpointServer) -> None:
    before = pid(server)
    assert server.invoke("large", b"end" + bytes(5_000_000), content_type="application/octet-stream").status == 500
    assert sent(server, bytes(5_000_000)) == hashlib.sha256(bytes(5_000_000)).hexdigest()
    assert pid(server) != before
