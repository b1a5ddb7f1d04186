"""
Raw requests: bytes to a server as they are, and what comes back, in a form that can be compared and kept.

A well-behaved client never sends most of what is tried here, so http.client cannot be used.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from support.exchanges import masked

# How long a server may keep silent where an answer is due, and where it is not certain that one comes.
ANSWER_SECS = 60.0
SILENT_SECS = 6.0
PROBE = b"GET /ping HTTP/1.1\r\nHost: probe\r\n\r\n"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# More of a body is not kept: it is an echo or a page.
SHOWN_CHARS = 400


@dataclass(frozen=True)
class Case:
    """
    Bytes to send, in one piece or in several, and how many answers are due.

    `may_be_silent`: the request is not complete, or no server can know that it is; only then is silence waited for.
    `waits_to_send`: the client sends its head alone, and the body once it is told to go on.
    `heads`: the answers that have no body, since HEAD was asked.
    `is_raced`: MMS answers requests on one connection side by side, in the order in which it happens to finish them.
    """

    name: str
    pieces: tuple[bytes, ...]
    answers: int = 1
    may_be_silent: bool = False
    waits_to_send: bool = False
    heads: tuple[int, ...] = ()
    is_raced: bool = False


class _Closed(Exception):
    """The server has closed the connection."""


class _Stream:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        # A server may refuse, and close, before all is sent: its answer is what counts.
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(data)

    def answer(self, secs: float, *, has_body: bool) -> dict[str, Any]:
        """Raises TimeoutError and _Closed."""
        self._socket.settimeout(secs)
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0)) if has_body else 0
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return _comparable(status, headers, body)

    def _more(self) -> None:
        try:
            data = self._socket.recv(65_536)
        except ConnectionError:
            raise _Closed from None
        if not data:
            raise _Closed
        self._buffer += data


def _comparable(status_line: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    version, status, *_ = status_line.split(" ")
    if "x-request-id" in headers and _UUID.fullmatch(headers["x-request-id"]):
        headers["x-request-id"] = "<uuid>"
    headers.pop("content-length", None)  # the body was read by it
    return {
        "status": int(status), "version": version, "headers": dict(sorted(headers.items())),
        "body": masked(body.decode("utf-8", "replace")),
    }  # fmt: skip


def transcript(port: int, case: Case) -> dict[str, Any]:
    """
    All that came back, and what became of the connection.

    `end`: "open" where a further request on it is answered, "closed", or "silent" where that request is not answered
    either.
    """
    stream = _Stream(port)
    try:
        return _transcript(stream, case)
    finally:
        stream.close()


def _transcript(stream: _Stream, case: Case) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    secs = SILENT_SECS if case.may_be_silent else ANSWER_SECS
    try:
        for number, piece in enumerate(case.pieces):
            if number == 1 and case.waits_to_send:
                answers.append(stream.answer(ANSWER_SECS, has_body=False))
            stream.send(piece)
        with contextlib.suppress(TimeoutError):
            while len(answers) < case.answers:
                answers.append(stream.answer(secs, has_body=len(answers) not in case.heads))
        stream.send(PROBE)
        probed = stream.answer(secs, has_body=True)
        while probed["status"] != 200 or "Healthy" not in probed["body"]:
            answers.append(probed)
            probed = stream.answer(secs, has_body=True)
    except _Closed:
        return {"answers": answers, "end": "closed"}
    except TimeoutError:
        return {"answers": answers, "end": "silent"}
    return {"answers": answers, "end": "open"}


def transcripts(port: int, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """By name, several connections at a time."""
    with ThreadPoolExecutor(8) as pool:
        return dict(
            zip([case.name for case in cases], pool.map(lambda case: transcript(port, case), cases), strict=True)
        )


def difference(mms: dict[str, Any], ours: dict[str, Any]) -> tuple[str, str] | None:
    """
    In a few words, for a table: `200, 404, closed` beside `400, closed`; None if all is alike.

    Where statuses and ends are alike, the second says what is not: `the same; other fields`.
    """
    if mms == ours:
        return None
    if _in_short(mms) != _in_short(ours):
        return _in_short(mms), _in_short(ours)
    pairs = list(zip(mms["answers"], ours["answers"], strict=True))
    parts = [name for name in ("version", "headers", "body") if any(one[name] != other[name] for one, other in pairs)]
    return _in_short(mms), f"the same, other {' and '.join(parts)}"


def _in_short(seen: dict[str, Any]) -> str:
    return ", ".join([*(str(answer["status"]) for answer in seen["answers"]), seen["end"]])
