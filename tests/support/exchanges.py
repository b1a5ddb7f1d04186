"""
Captured exchanges: what a client sent and what a real Multi Model Server answered.

A block is `### CURL ARGUMENTS`, the answer's head, an empty line, the body. What differs from run to run stands
there as `<uuid>`, `<timestamp>`, `<worker id>`, `<bytes>`; answers are masked the same way before they are
compared. Reason phrases, the order of headers and lengths that follow from masking are not compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from support.server import Answer

_MASKS = (
    (re.compile(r'("id": )"\d+(?:-[0-9a-f]+)?"'), r'\1"<worker id>"'),
    (re.compile(r'("startTime": )"[^"]+"'), r'\1"<timestamp>"'),
    (re.compile(r'("memoryUsage": )\d+'), r"\1<bytes>"),
    (re.compile(r"\nTraceback .*", re.DOTALL), "\n<traceback>"),
)


@dataclass(frozen=True)
class Exchange:
    curl: str
    status: int
    headers: dict[str, str]
    body: str

    @property
    def method(self) -> str:
        named = re.search(r"-X (\w+)", self.curl)
        return named[1] if named else "GET"

    @property
    def host(self) -> str:
        """`management`, `inference` or, where one port serves everything, `server`."""
        return self._url[0]

    @property
    def target(self) -> str:
        return self._url[1]

    @property
    def _url(self) -> tuple[str, str]:
        url = re.search(r"http://(\w+)(/\S*)", self.curl)
        assert url is not None
        return url[1], url[2]

    @property
    def sent_headers(self) -> dict[str, str]:
        return dict(pair.split(": ", 1) for pair in re.findall(r"-H ([\w-]+: \S+)", self.curl))

    @property
    def sent_body(self) -> str | None:
        """The data of `-d`; forms and files are the test's to make."""
        data = re.search(r"(?:-d|--data) (.+?)(?= http://)", self.curl)
        return data[1] if data else None

    @property
    def form(self) -> list[tuple[str, str]]:
        return re.findall(r"-F (\w+)=(\S+)", self.curl)


def read_exchanges(path: Path) -> list[Exchange]:
    blocks = re.split(r"(?m)^### ", path.read_text())[1:]
    return [_parse(block) for block in blocks]


def _parse(block: str) -> Exchange:
    curl, _, rest = block.partition("\n")
    head, _, body = rest.partition("\n\n")
    status, *lines = head.splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    # The capture puts one newline after each body.
    return Exchange(curl, int(status.split()[1]), headers, body[:-1] if headers["content-length"] != "0" else "")


def masked(text: str) -> str:
    for pattern, replacement in _MASKS:
        text = pattern.sub(replacement, text)
    return text


def comparable(answer: Answer, *, replace: dict[str, str] | None = None) -> dict[str, object]:
    """What of an answer is compared, in the form of `expected`."""
    text = answer.body.decode()
    for old, new in (replace or {}).items():
        text = text.replace(old, new)
    headers = {name.lower(): value for name, value in answer.headers}
    assert headers.pop("content-length", None) == str(len(answer.body))
    if "x-request-id" in headers:
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", headers["x-request-id"])
        headers["x-request-id"] = "<uuid>"
    return {"status": answer.status, "headers": headers, "body": masked(text)}


def expected(exchange: Exchange) -> dict[str, object]:
    headers = {name.lower(): value for name, value in exchange.headers.items() if name != "content-length"}
    return {"status": exchange.status, "headers": headers, "body": masked(exchange.body)}


def form_body(fields: list[tuple[str, str]]) -> tuple[bytes, str]:
    """A multipart form as curl -F sends it: body and Content-Type; `@file` is a small file."""
    boundary = "form-boundary-of-the-test"
    parts = []
    for name, value in fields:
        if value.startswith("@"):
            parts.append(
                f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="hostname"\r\n'
                "Content-Type: application/octet-stream\r\n\r\na-file\r\n",
            )
        else:
            parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n')
    body = "".join(parts) + f"--{boundary}--\r\n"
    return body.encode(), f"multipart/form-data; boundary={boundary}"
