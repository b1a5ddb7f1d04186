"""
What large bodies are received in: memory that earlier ones leave.

The system gives fresh memory page by page, and that takes forty times as long as the bytes' way into them.
"""

from __future__ import annotations

import io
import sys

# What is kept for later bodies, at most.
_MOST_KEPT_BYTES = 32 * 1024**2


class Buffers:
    """
    A body is its buffer's own memory and no copy of it. A buffer whose body somebody still has is not written to:
    io.BytesIO makes itself another memory then, so it is only for speed that those are left alone which are in use.
    """

    def __init__(self) -> None:
        # Buffers, and the bodies that are in them.
        self._kept: list[tuple[io.BytesIO, bytes]] = []
        self._is_used = False

    def take(self) -> io.BytesIO:
        """To be written to from its beginning on. There may be anything behind that."""
        self._is_used = True
        for place, kept in enumerate(self._kept):
            if _references(kept) == _NOBODYS:
                buffer, _ = self._kept.pop(place)
                buffer.seek(0)
                return buffer
        return io.BytesIO()

    def body_in(self, buffer: io.BytesIO) -> bytes:
        """What was written to it. It serves a later body when nobody has this one any more."""
        buffer.truncate()
        body = buffer.getvalue()
        self._kept.append((buffer, body))
        while sum(len(body) for _, body in self._kept) > _MOST_KEPT_BYTES:
            del self._kept[0]
        return body

    def look(self) -> None:
        """Called again and again: where no large body has come in between, their memory is given back."""
        if not self._is_used:
            self._kept.clear()
        self._is_used = False


def _references(kept: tuple[io.BytesIO, bytes]) -> int:
    return sys.getrefcount(kept[1])


def _new() -> tuple[io.BytesIO, bytes]:
    buffer = io.BytesIO()
    buffer.write(bytes(2))
    return buffer, buffer.getvalue()


# Of a body that nobody has but its buffer and the list of those that are kept.
_NOBODYS = _references(_new())
