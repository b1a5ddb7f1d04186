"""`sagemaker_containers.beta.framework.worker`: the response that a script's output_fn makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from polyhost_handlers.aws.content_types import JSON

_HAS_CHARSET = ("application/ecmascript", "application/javascript", "application/sql", "application/xml")


class Response:
    """What scripts use of Flask's: a body, a status and headers."""

    default_mimetype = JSON

    def __init__(
        self,
        response: Any = None,
        accept: str | None = None,  # noqa: ARG002 - AWS's ignores it too
        status: int | str = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        mimetype: str | None = None,
        direct_passthrough: bool = False,  # noqa: ARG002
    ) -> None:
        self.response = response
        self.status_code = int(status) if isinstance(status, int) else int(status.split(" ")[0])  # "404 NOT FOUND"
        self.headers = dict(headers or {})
        given = next((name for name in self.headers if name.lower() == "content-type"), None)
        if mimetype or given is None:
            self.headers.pop(given or "", None)
            self.headers["Content-Type"] = _content_type(mimetype or self.default_mimetype)

    @property
    def content_type(self) -> str:
        return next(value for name, value in self.headers.items() if name.lower() == "content-type")

    @property
    def mimetype(self) -> str:
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def data(self) -> Any:
        return self.get_data()

    @data.setter
    def data(self, value: Any) -> None:
        self.set_data(value)

    def get_data(self, as_text: bool = False) -> Any:
        parts = [self.response] if isinstance(self.response, (str, bytes, bytearray)) else list(self.response or ())
        body = b"".join(part.encode() if isinstance(part, str) else bytes(part) for part in parts)
        self.response = [body]  # which may have been an iterator
        return body.decode() if as_text else body

    def set_data(self, value: Any) -> None:
        self.response = value


def _content_type(mimetype: str) -> str:
    """Texts say their encoding, as Flask's responses do."""
    name = mimetype.lower()
    is_text = name.startswith("text/") or name in _HAS_CHARSET or name.endswith("+xml")
    return f"{mimetype}; charset=utf-8" if is_text and "charset" not in name else mimetype
