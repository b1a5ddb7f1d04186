"""
What a front answers itself: rows for models that it has leased. All else is the keeper's.

A front is given a lease with the keeper's reply to a request, and answers the next ones like it, as long as the lease
holds. It knows no more of models than that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import Protocol

from polyhost.api.http import Reply, Request
from polyhost.api.origins import Origins, why_foreign
from polyhost.api.request_ids import request_ids
from polyhost.engine.native.rows import Rows
from polyhost.engine.native.segments import Readable
from polyhost.engine.protocol import Answer, Item
from polyhost.fronts.messages import Grant, Returned
from polyhost.fronts.relay import Done, Key, Relay

logger = logging.getLogger("polyhost.fronts")

_TARGET = "x-amzn-sagemaker-target-model"
# Requests that are known, each by its path and target: these are the clients' choice. The oldest ones go first.
_MOST_KEYS, _MOST_KEY_CHARS = 100_000, 400


class OnAnswer(Protocol):
    """What becomes of a call to an endpoint that was answered here: it is counted, and logged."""

    def __call__(
        self, grant: Grant, request_id: str, bytes_in: int, bytes_out: int, total_secs: float, model_secs: float
    ) -> None: ...


class Held:
    """A leased model."""

    __slots__ = ("keys", "rows", "serial")

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        # The serial of the newest lease for it.
        self.serial = 0
        self.keys: set[Key] = set()


class OwnAnswers:
    """An application for a Listener."""

    def __init__(
        self,
        relay: Relay,
        readable: Readable,
        flags: memoryview,
        on_answer: OnAnswer,
        *,
        max_request_bytes: int,
        origins: Origins | None,
        deciding: Collection[str],
    ) -> None:
        """
        `flags`: whether each lease holds. `deciding`: fields that a row's request does not have. `origins`: None where
        everybody may call.
        """
        self.max_request_bytes = max_request_bytes
        self._relay = relay
        self._readable = readable
        self._flags = flags
        self._on_answer = on_answer
        self._origins = origins
        self._deciding = frozenset(deciding)
        self._ids = request_ids()
        self._by_key: dict[Key, tuple[Grant, Rows]] = {}
        self._by_slot: dict[int, Held] = {}
        relay.on_grant = self._hold
        relay.on_revoked = self._revoked

    # An application

    def answer(self, request: Request, done: Done) -> Callable[[], object] | None:
        key = request.path, request.headers.get(_TARGET, "")
        known = self._by_key.get(key)
        if known is None:
            is_like_a_row = request.method == "POST" and not request.query and sum(map(len, key)) <= _MOST_KEY_CHARS
            return self._relay.ask(request, done, key if is_like_a_row else None)
        reply = self._reply(request, *known) if self._flags[known[0].slot] else None
        if reply is None:
            return self._relay.ask(request, done)
        done(reply)
        return None

    def too_large(self, request: Request, done: Done) -> None:
        self._relay.ask(request, done, is_too_large=True)

    def stop_soon(self) -> None: ...

    async def stop(self) -> None: ...

    def _reply(self, request: Request, grant: Grant, rows: Rows) -> Reply | None:
        """None where it is not that simple."""
        began = time.perf_counter()
        if not self._is_plain(request):
            return None
        asked = time.perf_counter()
        answer = rows.answer(Item("", request.headers, "", request.body))
        if answer is None:
            return None
        model_secs = time.perf_counter() - asked
        request_id = next(self._ids)
        if grant.lane >= 0:
            total_secs = time.perf_counter() - began
            self._on_answer(grant, request_id, len(request.body), len(answer.body), total_secs, model_secs)
        return _reply(answer, grant, request_id)

    def _is_plain(self, request: Request) -> bool:
        if request.method != "POST" or request.query or not self._deciding.isdisjoint(request.headers):
            return False
        return self._origins is None or why_foreign(request.headers, self._origins) is None

    # Leases

    def _hold(self, grant: Grant, key: Key | None) -> None:
        held = self._by_slot.get(grant.slot)
        if held is None:
            rows = None if key is None else self._rows(grant)
            if rows is None:
                self._relay.send(Returned(grant.slot, grant.serial))
                return
            held = self._by_slot[grant.slot] = Held(rows)
        held.serial = grant.serial
        if key is not None:
            if self._by_key.get(key, (grant,))[0].slot != grant.slot:
                self._forget(key)
            held.keys.add(key)
            self._by_key[key] = grant, held.rows
            if len(self._by_key) > _MOST_KEYS:
                self._forget(next(iter(self._by_key)))

    def _rows(self, grant: Grant) -> Rows | None:
        try:
            return Rows.at(self._readable.address_of(grant.segment) + grant.offset, grant.default_accept)
        except OSError as error:
            logger.warning("rows are answered by the server's first process: no segment of models came (%s)", error)
            return None

    def _forget(self, key: Key) -> None:
        grant, _ = self._by_key.pop(key)
        held = self._by_slot[grant.slot]
        held.keys.discard(key)
        if not held.keys:
            self._give_back(grant.slot)

    def _revoked(self, slot: int) -> None:
        held = self._by_slot.get(slot)
        if held is not None:  # otherwise it was given back before this came
            for key in held.keys:
                del self._by_key[key]
            self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        self._relay.send(Returned(slot, self._by_slot.pop(slot).serial))


def _reply(answer: Answer, grant: Grant, request_id: str) -> Reply:
    own_headers = b"%b: %b\r\n%b" % (grant.id_field, request_id.encode(), grant.lines)
    return Reply(answer.body, 200, grant.headers[answer.headers["content-type"]], own_headers)
