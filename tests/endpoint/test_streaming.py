"""InvokeEndpointWithResponseStream as boto3 meets it: parts come as a script yields them, through fronts, too."""

from __future__ import annotations

import contextlib
import http.client
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EventStreamError
from support.endpoint import EndpointServer, packed
from support.tree import wait_until

SCRIPT = """
import os, time
from pathlib import Path

def model_fn(model_dir):
    return None

def wait_for(gate):
    while os.path.exists(gate):
        time.sleep(0.01)

def pieces(words, gate):
    marks = Path(gate).parent
    (marks / "begun").write_text((marks / "begun").read_text() + "x" if (marks / "begun").exists() else "x")
    try:
        for word in words:
            if word == "wait":
                wait_for(gate)
            elif word == "forever":
                while True:
                    yield "."
                    time.sleep(0.001)
            elif word == "raise":
                raise ValueError("in the middle")
            elif word == "end":
                os._exit(3)
            elif word == "number":
                yield 1
            elif word == "many":
                for _ in range(40_000):
                    yield b"y"
            elif word == "large":
                yield b"x" * 3_000_000
            else:
                yield word
        yield str(os.getpid())
    finally:
        (marks / "closed").touch()

def transform_fn(model, body, content_type, accept):
    text = body if isinstance(body, str) else body.decode()
    gate, *words = text.split()
    if words[0] == "whole":
        return "all of it", accept
    return pieces(words, gate), "text/plain"
"""
_SECS = 180
_ABANDONED = "Nobody waits for the rest of the answer."
_numbers = itertools.count(1)


class Streaming:
    def __init__(self, server: EndpointServer, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self.client = server.client("sagemaker-runtime")

    def marks(self) -> Path:
        """A folder in which a call leaves its marks, and waits for its gate."""
        marks = self._folder / f"call-{next(_numbers)}"
        marks.mkdir()
        return marks

    def call(self, marks: Path, words: str, **more: Any) -> Any:
        return self.client.invoke_endpoint_with_response_stream(
            EndpointName="streaming", Body=f"{marks / 'gate'} {words}", ContentType="text/plain", **more
        )

    def text(self, words: str) -> str:
        return "".join(parts(self.call(self.marks(), words)))


def parts(answer: Any) -> Iterator[str]:
    return (event["PayloadPart"]["Bytes"].decode() for event in answer["Body"])


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "fronts"])
def streaming(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streaming]:
    folder = tmp_path_factory.mktemp("streaming")
    (folder / "model" / "code").mkdir(parents=True)
    (folder / "model" / "code" / "inference.py").write_text(SCRIPT)
    packed(folder / "model", folder / "models" / "model.tar.gz")
    server = EndpointServer(
        "native", None, "--fronts", request.param, environ={"MMS_MAX_RESPONSE_SIZE": "4000000"},
        model_root=str(folder / "models"),
    )  # fmt: skip
    try:
        server.deploy("streaming", "", ModelDataUrl=f"file://{folder}/models/model.tar.gz")
        yield Streaming(server, folder)
        assert server.stop() == 0, server.process.log
    finally:
        server.kill()


def test_a_part_is_there_before_the_next_is_made(streaming: Streaming) -> None:
    marks = streaming.marks()
    (marks / "gate").touch()

    answer = streaming.call(marks, "one wait two", Accept="text/plain", CustomAttributes="mine")
    seen = parts(answer)
    first = next(seen)
    (marks / "gate").unlink()

    assert first == "one"
    assert next(seen) == "two"
    assert next(seen).isdigit()
    assert next(seen, "over") == "over"
    assert (answer["ContentType"], answer["InvokedProductionVariant"]) == ("text/plain", "AllTraffic")


def test_an_answer_in_one_piece_is_one_part(streaming: Streaming) -> None:
    answer = streaming.call(streaming.marks(), "whole", Accept="text/special")

    assert list(parts(answer)) == ["all of it"]
    assert answer["ContentType"] == "text/special"


def test_a_long_part_is_several_events(streaming: Streaming) -> None:
    *large, _ = parts(streaming.call(streaming.marks(), "large"))

    assert len(large) > 1
    assert "".join(large) == "x" * 3_000_000


def test_invoke_endpoint_answers_all_at_once(streaming: Streaming) -> None:
    marks = streaming.marks()

    answer = streaming.server.predict(
        None, f"{marks / 'gate'} one two", EndpointName="streaming", content_type="text/plain"
    )

    assert answer.startswith("onetwo")
    assert (marks / "closed").exists()


def test_what_goes_wrong_before_the_first_part_is_an_error_of_the_call(streaming: Streaming) -> None:
    for words, sentence in (("raise", "in the middle"), ("number", "yielded a int: yield bytes or text")):
        with pytest.raises(ClientError, match=sentence) as failed:
            streaming.call(streaming.marks(), words)

        assert failed.value.response["Error"]["Code"] == "ModelError"
        assert failed.value.response["OriginalStatusCode"] == 500
    with pytest.raises(ClientError, match="Endpoint gone of account"):
        streaming.client.invoke_endpoint_with_response_stream(EndpointName="gone", Body=b"1")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("one raise", "in the middle"),
        ("one large large", "bytes, 4000000 are allowed"),
        ("one many", "bytes, 4000000 are allowed"),
        ("one end", "in the middle"),
    ],
    ids=["raises", "too long", "too many", "its worker ends"],
)
def test_what_goes_wrong_after_a_part_is_an_event(streaming: Streaming, words: str, sentence: str) -> None:
    marks = streaming.marks()
    answer = streaming.call(marks, words)
    with contextlib.closing(answer["Body"]):
        seen = parts(answer)
        assert next(seen) == "one"

        with pytest.raises(EventStreamError, match=sentence) as failed:
            list(seen)

    assert "(ModelStreamError)" in str(failed.value)
    assert (marks / "begun").read_text() == "x", "nobody is asked again for what has begun"
    assert streaming.text("one").startswith("one")


def test_a_client_that_reads_late_holds_up_nobody(streaming: Streaming) -> None:
    """More than the kernel keeps for it: the script goes on to its end all the same."""
    marks = streaming.marks()
    answer = streaming.call(marks, "large")

    wait_until((marks / "closed").exists, _SECS, "the script's generator is closed")

    assert "".join(parts(answer)).startswith("x" * 3_000_000)


def test_the_containers_own_routes_answer_in_chunks(streaming: Streaming) -> None:
    """As SageMaker's platform reads them."""
    marks, archive = streaming.marks(), Path(streaming.server.model_root) / "model.tar.gz"
    (marks / "gate").touch()
    assert streaming.server.load(marks.name, archive).status == 200

    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", streaming.server.port, timeout=_SECS)) as client:
        for words in ("one wait two", "whole", "one raise"):
            client.request("POST", f"/models/{marks.name}/invoke", f"{marks / 'gate'} {words}")
            answer = client.getresponse()
            if words == "one wait two":
                assert answer.read1(100) == b"one"
                (marks / "gate").unlink()
                assert answer.read().startswith(b"two")
                assert answer.headers["Transfer-Encoding"] == "chunked"
            elif words == "whole":
                assert answer.read() == b"all of it"
                assert answer.headers["Content-Length"] == "9"
            else:
                with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                    answer.read()


def test_a_client_that_leaves_ends_what_is_made_for_it(streaming: Streaming) -> None:
    marks = streaming.marks()
    answer = streaming.call(marks, "one forever")
    assert next(parts(answer)) == "one"
    before = streaming.server.process.log.count(_ABANDONED)

    answer["Body"].close()

    wait_until((marks / "closed").exists, _SECS, "the script's generator is closed")
    wait_until(lambda: streaming.server.process.log.count(_ABANDONED) > before, _SECS, _ABANDONED)
    assert streaming.text("one").startswith("one")
