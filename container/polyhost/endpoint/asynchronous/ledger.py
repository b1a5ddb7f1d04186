"""
The calls that were accepted and are not over, in a file: the next server has them again, whatever ended this one.

Blocking, and for one thread. What `add` has returned from is on the disk.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import msgspec

from polyhost.endpoint.asynchronous.definitions import AsyncCall
from polyhost.endpoint.hosting.sqlite_state import SqliteState
from polyhost.endpoint.hosting.state import Resource, StateFailed
from polyhost.errors import StartFailed

FILE = "calls.sqlite3"
# Inputs that came with their calls are apart: they are read one by one.
_CALL, _BODY = "async-call", "async-body"


class Ledger:
    """Raises StartFailed; its methods StateFailed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._state = SqliteState(folder, FILE)

    def close(self) -> None:
        self._state.close()

    def add(self, call: AsyncCall, body: bytes) -> None:
        self._state.transact(lambda: self._put(call, body))

    def _put(self, call: AsyncCall, body: bytes) -> None:
        self._state.put(Resource(_CALL, call.id, call.accepted, call.accepted, msgspec.to_builtins(call)))
        if body:
            document = {"Body": base64.b64encode(body).decode()}
            self._state.put(Resource(_BODY, call.id, call.accepted, call.accepted, document))

    def remove(self, call: AsyncCall) -> None:
        self._state.transact(lambda: self._delete(call))

    def _delete(self, call: AsyncCall) -> None:
        for kind in (_CALL, _BODY):
            self._state.delete(kind, call.id)

    def unfinished(self) -> Sequence[AsyncCall]:
        """The oldest first. Raises StartFailed."""
        try:
            kept = self._state.transact(lambda: self._state.all(_CALL))
            calls = [msgspec.convert(resource.document, AsyncCall) for resource in kept]
        except (StateFailed, msgspec.ValidationError) as error:
            raise StartFailed(
                f"The asynchronous calls in {self._file} cannot be read ({error}). Restore the file, or move it away "
                "to begin without them."
            ) from error
        return sorted(calls, key=lambda call: call.accepted)

    def body(self, call: AsyncCall) -> bytes:
        """The input that came with the call."""
        kept = self._state.transact(lambda: self._state.get(_BODY, call.id))
        return base64.b64decode(kept.document["Body"]) if kept else b""
