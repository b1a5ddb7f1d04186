"""
Requests to the Multi Model Server on loopback: one HTTP session, MMS's errors as ours.

The session is opened once and kept by `MmsClient`; nobody else talks to MMS.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from polyhost.engine.errors import (
    BadRequest,
    Conflict,
    EngineError,
    ModelNotFound,
    OutOfMemory,
    PredictionFailed,
    Unavailable,
)
from polyhost.engine.mms_handlers import usual_case
from polyhost.engine.mms_service import IS_ANSWER, REQUEST_ID
from polyhost.engine.protocol import Item

# What HTTP says of one hop and not of the request.
_NOT_PASSED_ON = frozenset(
    ("connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"),
)
# What MMS puts around every answer, a handler's too.
_NOT_A_HANDLERS = frozenset(
    (b"x-request-id", b"pragma", b"cache-control", b"expires", b"content-length", b"connection", IS_ANSWER.encode()),
)
_JSON = {"Content-Type": "application/json"}
_CONNECT_SECS = 10
_UNREGISTER_PAUSES_SECS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class MmsAnswer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    raw_headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class MmsClient:
    """`address`: MMS's, such as `http://127.0.0.1:8081`."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    async def close(self) -> None:
        await self._session.close()

    async def answers(self) -> bool:
        with contextlib.suppress(EngineError):
            await self.ask("GET", "/ping")
            return True
        return False

    async def ask(self, method: str, target: str, document: Any = None) -> dict[str, Any]:
        """What MMS answers. Raises EngineError in MMS's words."""
        try:
            url = URL(self._address + target, encoded=True)
            async with self._session.request(method, url, data=json.dumps(document), headers=_JSON) as response:
                body = await response.read()
        except aiohttp.ClientError as error:
            raise _unreachable(error) from error
        if response.status >= 400:
            raise mms_error(response.status, body)
        answer: dict[str, Any] = json.loads(body)
        return answer

    async def unregister(self, inner_name: str) -> None:
        """
        Take a model out of MMS, whether it is there or not. Raises EngineError.

        MMS 1.1.11 answers 500 for a short time after it has registered a model: it has no process for it yet, and its
        DELETE wants to end that process.
        """
        for pause_secs in (*_UNREGISTER_PAUSES_SECS, None):
            try:
                await self.ask("DELETE", f"/models/{inner_name}")
            except ModelNotFound:
                return
            except EngineError as error:
                if pause_secs is None or error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                await asyncio.sleep(pause_secs)
            else:
                return

    async def predict(self, inner_name: str, item: Item, *, total_secs: float | None) -> MmsAnswer:
        """`total_secs`: None for MMS's own limit. Raises asyncio.TimeoutError, Unavailable."""
        url = f"{self._address}/models/{inner_name}/invoke"
        if item.query:
            url += f"?{_fields_of(item.query)}"
        timeout = aiohttp.ClientTimeout(total=total_secs, sock_connect=_CONNECT_SECS)
        try:
            async with self._session.post(
                URL(url, encoded=True), data=item.body, headers=_passed_on(item), timeout=timeout
            ) as response:
                return MmsAnswer(response.status, response.headers, response.raw_headers, await response.read())
        except asyncio.TimeoutError:
            raise
        except aiohttp.ClientError as error:
            raise _unreachable(error) from error


def _passed_on(item: Item) -> dict[str, str]:
    headers = {_usual_case(key): _as_utf8(value) for key, value in item.headers.items() if key not in _NOT_PASSED_ON}
    headers[REQUEST_ID] = item.request_id
    return headers


_KINDS = (BadRequest, ModelNotFound, Conflict, Unavailable, OutOfMemory, PredictionFailed)


def mms_error(status: int, body: bytes) -> EngineError:
    """The error that MMS reports, of our kind where we have one."""
    try:
        document = json.loads(body)
        kind_name, message = document["type"], document["message"]
    except (ValueError, TypeError, KeyError):
        return EngineError(f"Multi Model Server answered {status}.", status)
    for kind in _KINDS:
        if (kind.status, kind.type) == (status, kind_name):
            return kind(message)
    error = EngineError(message, status)
    error.type = kind_name
    return error


def _unreachable(error: aiohttp.ClientError) -> EngineError:
    return Unavailable(f"Multi Model Server does not answer: {error}.")


def _fields_of(query: str) -> str:
    """A query without the model's name, which is no field of the request."""
    return "&".join(pair for pair in query.split("&") if not pair.startswith("model_name="))


@functools.lru_cache(maxsize=1000)
def _usual_case(name: str) -> str:
    return usual_case(name)


def _as_utf8(value: str) -> str:
    """Bytes that were taken as Latin-1 on the way in, as the HTTP library writes them in UTF-8 on the way out."""
    return value if value.isascii() else value.encode("latin-1").decode("utf-8", "replace")


def handlers_headers(answer: MmsAnswer) -> dict[str, str]:
    """The header fields that the handler gave, without those that MMS puts around every answer."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in answer.raw_headers
        if name.lower() not in _NOT_A_HANDLERS
    }
