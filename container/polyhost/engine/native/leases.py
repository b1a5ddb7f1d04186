"""
Leases: other processes of the server answer rows by compiled models where these lie, in memory that is shared.

A lease holds until it is revoked, which all its tenants see at once: by a flag in shared memory that they read before
each answer. So from then on nobody answers by a model that was unloaded, replaced or evicted. What lies at its place
stays there until each tenant has said that it does not read there any more.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from polyhost.engine.native.blobs import Blob, Blobs
from polyhost.engine.native.segments import Channel

# How many leases there may be at once, the revoked ones that are still being read included.
SLOTS = 2**20
# How long a tenant may go on reading. One that takes longer is stuck.
_PATIENCE_SECS = 10.0


class Tenant(Protocol):
    """A process that answers by leased models."""

    channel: Channel

    def revoked(self, slot: int) -> None:
        """To be answered by `Leases.returned`."""

    def abort(self) -> None:
        """End it: `Leases.gone` follows."""


class Leased(Protocol):
    """What is leased: a compiled model whose rows can be answered."""

    blob: Blob
    default_accept: str


class Lease(NamedTuple):
    """`slot`: its flag's place. `serial`: another one for each lease that is given."""

    slot: int
    serial: int
    segment: int
    offset: int
    default_accept: str


@dataclass(eq=False)
class _Let:
    slot: int
    rows: Leased
    # With the serial of the lease that each was given last.
    tenants: dict[Tenant, int] = field(default_factory=dict)
    is_revoked: bool = False


class Flags:
    """One byte for each slot: whether the lease holds."""

    def __init__(self, descriptor: int, *, is_owner: bool) -> None:
        access = mmap.ACCESS_WRITE if is_owner else mmap.ACCESS_READ
        self.flags = memoryview(mmap.mmap(descriptor, SLOTS, access=access))

    @staticmethod
    def new() -> int:
        descriptor = os.memfd_create("polyhost-leases", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, SLOTS)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor


class Leases:
    """Who has leased which compiled model. Nobody, unless `descriptor` was asked for."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        # Called when nobody has the slot any more. Another lease may get it next.
        self.on_ended: Callable[[int], None] = lambda _: None
        self._descriptor = -1
        self._flags: memoryview
        self._fresh_slot = 0
        self._free_slots: list[int] = []
        self._serial = 0
        # Leases that hold, by what is leased; and all leases, by their slots.
        self._holding: dict[Leased, _Let] = {}
        self._let: dict[int, _Let] = {}
        # How many slots a blob has.
        self._slots_of: Counter[Blob] = Counter()
        self._change: asyncio.Future[None] | None = None

    @property
    def descriptor(self) -> int:
        """The descriptor of the flags, which tenants map."""
        if self._descriptor < 0:
            self._descriptor = Flags.new()
            self._flags = Flags(self._descriptor, is_owner=True).flags
        return self._descriptor

    def give(self, rows: Leased, tenant: Tenant) -> Lease | None:
        """None where the tenant cannot be given it, or there are too many."""
        let = self._holding.get(rows) or self._new(rows)
        if let is None:
            return None
        segment = rows.blob.segment
        if not tenant.channel.has_passed(segment):
            self._end_if_empty(let)
            return None
        self._serial += 1
        let.tenants[tenant] = self._serial
        return Lease(let.slot, self._serial, segment.number, rows.blob.offset, rows.default_accept)

    def revoke(self, rows: Leased) -> None:
        """No front answers by it from now on. Its memory must stay in place until `settled`."""
        let = self._holding.pop(rows, None)
        if let is None:
            return
        let.is_revoked = True
        self._flags[let.slot] = 0
        for tenant in let.tenants:
            tenant.revoked(let.slot)
        self._end_if_empty(let)

    def returned(self, slot: int, serial: int, tenant: Tenant) -> None:
        """The tenant reads it no more; unless it has been given it again since, by a lease that it has not seen yet."""
        let = self._let.get(slot)
        if let is not None and let.tenants.get(tenant) == serial:
            del let.tenants[tenant]
            self._end_if_empty(let)

    def gone(self, tenant: Tenant) -> None:
        """The process has ended."""
        for let in [let for let in self._let.values() if tenant in let.tenants]:
            del let.tenants[tenant]
            self._end_if_empty(let)

    async def settled(self, rows: Leased) -> None:
        """Returns when nobody reads what was revoked: a tenant that does not say so in time is ended."""
        deadline = asyncio.get_running_loop().time() + _PATIENCE_SECS
        while self._slots_of.get(rows.blob):
            if self._change is None:
                self._change = asyncio.get_running_loop().create_future()
            secs = deadline - asyncio.get_running_loop().time()
            if not (await asyncio.wait({self._change}, timeout=max(0.0, secs)))[0]:
                self._end_tenants_of(rows)
                deadline += _PATIENCE_SECS

    def _end_tenants_of(self, rows: Leased) -> None:
        for let in [let for let in self._let.values() if let.rows is rows and let.is_revoked]:
            for tenant in [*let.tenants]:
                tenant.abort()

    def _new(self, rows: Leased) -> _Let | None:
        if not self._free_slots and self._fresh_slot == SLOTS:
            return None
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot, self._fresh_slot = self._fresh_slot, self._fresh_slot + 1
        let = self._holding[rows] = self._let[slot] = _Let(slot, rows)
        self._flags[slot] = 1
        if not self._slots_of[rows.blob]:
            self._blobs.lend(rows.blob, self)
        self._slots_of[rows.blob] += 1
        return let

    def _end_if_empty(self, let: _Let) -> None:
        """A lease that nobody has holds nothing."""
        if let.tenants:
            return
        if not let.is_revoked:
            del self._holding[let.rows]
            self._flags[let.slot] = 0
        del self._let[let.slot]
        self.on_ended(let.slot)
        self._free_slots.append(let.slot)
        blob = let.rows.blob
        self._slots_of[blob] -= 1
        if not self._slots_of[blob]:
            del self._slots_of[blob]
            self._blobs.give_back(blob, self)
        change, self._change = self._change, None
        if change is not None:
            change.set_result(None)
