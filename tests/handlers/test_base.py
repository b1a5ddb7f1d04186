"""The bridge from our handlers to MMS's contract, tried with MMS's own Service."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from mms.service import Service
from polyhost_handlers.artifacts import folder_bytes
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.errors import BadInput, LoadFailed, NoContent

from handlers.calling import Model, Part


class Teller(Handler):
    """Answers with what reached it, or does what the body says."""

    kind = "teller"

    def __init__(self, source: ModelSource) -> None:
        self.source = source

    @classmethod
    def load(cls, source: ModelSource) -> Teller:
        order = (source.model_dir / "order").read_text() if (source.model_dir / "order").exists() else ""
        if order == "memory":
            raise MemoryError("no room")
        if order == "bad_alloc":
            raise RuntimeError("std::bad_alloc")
        if order == "bug":
            raise KeyError("weights")
        if order == "broken":
            raise LoadFailed("Unable to load model: it is broken.")
        return cls(source)

    def predict(self, request: Request) -> Response:
        if request.body == b"memory":
            raise MemoryError("no room")
        if request.body == b"bad":
            raise BadInput("Send something\n  better.")
        if request.body == b"nothing":
            raise NoContent("The request has no rows.")
        if request.body == b"bug":
            raise RuntimeError("[10:12:24] /src/a.cc:1: it broke\nStack trace:\n  [bt] (0) lib.so")
        if request.body == b"object":
            return Response({"a": [1, 2]})
        if request.body == b"own status":
            request.context.set_response_status(code=418, phrase="", idx=0)
            return Response("teapot", status=None)
        text = f"{request.body.decode()}|{request.content_type}|{request.accept}|{request.headers.get('x-thing', '')}"
        return Response(text, request.accept or "text/plain")


HANDLER = Teller


def loaded_by(handle: Callable[..., object]) -> Teller:
    return inspect.getclosurevars(handle).nonlocals["model"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr("importlib.import_module", lambda _: __import__("sys").modules[__name__])
    return Model("teller", tmp_path)


def test_a_raw_body_with_its_headers(model: Model) -> None:
    """The body as bytes, header names in lower case, Content-Type and Accept of the request."""
    answer = model.load().ask(b"1,2", "text/csv", "text/x", **{"X-Thing": "yes"})

    assert (answer.status, answer.body, answer.content_type) == (200, b"1,2|text/csv|text/x|yes", "text/x")


def test_the_source_names_model_folder_and_container(model: Model, tmp_path: Path) -> None:
    """A handler never reads the environment or MMS's context by itself."""
    source = loaded_by(model.load()._handle).source

    assert (source.model_dir, source.model_name, source.is_multi_model) == (tmp_path, "model", True)
    assert source.default_accept("text/csv") == "text/csv"
    assert source.context is model.context


@pytest.mark.parametrize(
    ("parts", "content_type", "told"),
    [
        ([Part("body", b"x")], "", "x||"),
        ([Part("data", b"x")], "", "x||"),
        ([Part("image", b"x", "image/png")], "multipart/form-data; boundary=1", "x|image/png|"),
        ([Part("body", b"x"), Part("k", b"5")], "text/csv", "x|text/csv|"),
        ([Part("body", {"a": 1})], "application/json", '{"a": 1}|application/json|'),
        ([Part("body", [1, 2])], "application/json", "[1, 2]|application/json|"),
        ([], "text/csv", "|text/csv|"),
    ],
)
def test_where_mms_puts_a_body(model: Model, parts: list[Part], content_type: str, told: str) -> None:
    """Raw, as the one field of a form with the field's own type, or decoded by a stock MMS."""
    (answer,) = model.load().ask_parts([parts], {"Content-Type": content_type} if content_type else {})

    assert answer.body.decode() == told + "|"


def test_several_fields_and_none_is_the_body(model: Model) -> None:
    """The answer says how to name it."""
    (answer,) = model.load().ask_parts([[Part("b", b"1"), Part("a", b"2")]], {})

    assert (answer.status, answer.message) == (400, "Send one field, or name one of them 'body': the request has a, b.")


def test_an_error_is_mmss_json_in_one_sentence(model: Model) -> None:
    """Clients parse one form of errors, whoever made them."""
    answer = model.load().ask(b"bad")

    assert answer.json() == {"code": 400, "type": "BadRequestException", "message": "Send something better."}
    assert answer.content_type == "application/json"
    assert answer.body.startswith(b'{\n  "code": 400')
    assert answer.body.endswith(b"}\n")


def test_no_content_has_no_body(model: Model) -> None:
    """204 as HTTP has it."""
    answer = model.load().ask(b"nothing")

    assert (answer.status, answer.body) == (204, b"")


def test_a_bug_is_a_sentence_for_the_client_and_a_traceback_for_the_log(
    model: Model,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither Python's trace nor a library's reaches the client."""
    answer = model.load().ask(b"bug")

    assert (answer.status, answer.message) == (500, "Prediction failed: RuntimeError: it broke")
    assert "Traceback" in caplog.text


def test_memory_is_507_by_mms_itself(model: Model) -> None:
    """MemoryError leaves the handler, and MMS answers for the whole batch."""
    answers = model.load().ask_batch([b"1", b"memory", b"2"])

    assert [answer.status for answer in answers] == [507, 507, 507]


def test_each_of_a_batch_has_its_own_answer(model: Model) -> None:
    """One bad request spoils no other."""
    answers = model.load().ask_batch([b"1", b"bad", b"bug", b"object", b"nothing"])

    assert [answer.status for answer in answers] == [200, 400, 500, 200, 204]
    assert answers[3].json() == {"a": [1, 2]}


def test_a_status_set_on_the_context_stays(model: Model) -> None:
    """Scripts may choose their own."""
    assert model.load().ask(b"own status").status == 418


def test_a_letter_beyond_ascii_in_accept_does_not_garble_the_answer(model: Model) -> None:
    """
    MMS counts characters and sends bytes: what follows a content type with an é would be read from the wrong place.
    """
    answer = model.load().ask(b"1", accept="text/é\r\nx: y")

    assert (answer.status, answer.content_type) == (200, "text/x: y")
    assert answer.body.startswith(b"1|")


@pytest.mark.parametrize(
    ("order", "error", "text"),
    [
        ("memory", MemoryError, "no room"),
        ("bad_alloc", MemoryError, "std::bad_alloc"),
        ("broken", LoadFailed, "Unable to load model: it is broken."),
        ("bug", LoadFailed, "Unable to load model: KeyError: 'weights'"),
    ],
)
def test_a_failed_load_says_so(
    model: Model,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    order: str,
    error: type[Exception],
    text: str,
) -> None:
    """MMS hears it, because the handler is a function; the log has the sentence and the model's name."""
    (tmp_path / "order").write_text(order)
    with caplog.at_level(logging.ERROR), pytest.raises(error, match=text):
        model.load()
    assert "model model: " in caplog.text


def test_a_model_that_failed_to_load_is_loaded_by_the_next_request(model: Model, tmp_path: Path) -> None:
    """MMS may start a worker again and send it a request first."""
    (tmp_path / "order").write_text("memory")
    with pytest.raises(MemoryError):
        model.load()
    assert model.ask(b"1").status == 507
    (tmp_path / "order").unlink()
    assert model.ask(b"1").status == 200


def test_two_entry_points_share_nothing(tmp_path: Path) -> None:
    """One process may hold many models."""
    handles = [entry_point(Teller), entry_point(Teller)]
    for number, handle in enumerate(handles):
        service = Service(f"m{number}", str(tmp_path), None, handle, None, 1)
        handle(None, service.context)

    assert [loaded_by(handle).source.model_name for handle in handles] == ["m0", "m1"]


def test_the_size_of_a_folder_is_that_of_all_its_files(tmp_path: Path) -> None:
    """Subfolders too; the guard's estimate needs it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(1000))
    (tmp_path / "c").write_bytes(bytes(24))

    assert folder_bytes(tmp_path) == 1024
