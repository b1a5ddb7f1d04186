"""What is written to a client, and whether the client takes it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from polyhost.api.http import Body, Reply, head_of, sendable
from polyhost.api.unsent import unsent_and_taken_bytes

# A body of more than this is written by itself instead of being copied behind its head.
_COPIED_BYTES = 64 * 1024
# A client that takes so much of its answer reads it, if slowly, and has its time anew.
_READ_BYTES = 64 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Outgoing:
    __slots__ = ("_taken_bytes", "_transport", "is_choked", "is_tls")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.is_tls = transport.get_extra_info("sslcontext") is not None
        self.is_choked = False
        # When it was last looked whether the client reads.
        self._taken_bytes = 0

    def write(self, reply: Reply, method: str, *, closes: bool) -> None:
        """`method`: of the request that is answered."""
        if reply.status != 200:
            reply = sendable(reply)
        head = head_of(reply, closes=closes)
        if method == "HEAD":
            self._transport.write(head)
        elif len(reply.body) > _COPIED_BYTES:
            self._transport.writelines((head, reply.body))
        else:
            self._transport.write(head + reply.body)

    def write_parts(self, parts: Body, finished: Callable[[bool], object]) -> None:
        """As they come, behind the reply. `finished` is called at the end, with whether all have come."""
        parts.attach(self._write_part, functools.partial(self._end_parts, finished))

    def _write_part(self, part: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.writelines((b"%x\r\n" % len(part), part, b"\r\n"))

    def _end_parts(self, finished: Callable[[bool], object], is_whole: bool) -> None:
        """A client takes a body for whole unless its last part is missing."""
        if self._transport.is_closing():
            return
        if is_whole:
            self._transport.write(b"0\r\n\r\n")
        finished(is_whole)

    def write_continue(self) -> None:
        self._transport.write(_CONTINUE)

    def end(self) -> None:
        """
        Nothing more is written, but the client may still send.

        A connection that is closed with bytes unread is reset, and the client may lose the reply. So what comes is
        read and dropped until the client has closed, for a limited time.
        """
        if self.is_tls:
            self._transport.close()  # TLS says goodbye, and drops what still comes
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    def look(self) -> tuple[int, bool]:
        """How much is on its way to the client, and whether the client has taken some since it was last looked."""
        unsent_bytes, taken_bytes = unsent_and_taken_bytes(self._transport)
        more_bytes = taken_bytes - self._taken_bytes
        has_read = more_bytes >= _READ_BYTES or (more_bytes > 0 and not unsent_bytes)
        if has_read or more_bytes < 0:
            self._taken_bytes = taken_bytes
        return unsent_bytes, has_read
