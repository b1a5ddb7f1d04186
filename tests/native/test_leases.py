"""Leases of compiled models: whose flag holds, and when what lies at their places may change."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Awaitable, Callable, Iterator

import pytest
from polyhost.engine.native import leases as module
from polyhost.engine.native.blobs import Blob, Blobs
from polyhost.engine.native.leases import Flags, Lease, Leases
from polyhost.engine.native.segments import Channel, Readable, new_channel


class Rows:
    default_accept = "text/csv"

    def __init__(self, blob: Blob) -> None:
        self.blob = blob


class Front:
    """A tenant."""

    def __init__(self, leases: Leases) -> None:
        ours, theirs = new_channel()
        self.channel = Channel(ours)
        self.readable = Readable(theirs)
        self.close = theirs.close
        self.told: list[int] = []
        self.is_aborted = False
        self._leases = leases

    def revoked(self, slot: int) -> None:
        self.told.append(slot)

    def abort(self) -> None:
        self.is_aborted = True
        self._leases.gone(self)


class Scene:
    def __init__(self) -> None:
        self.blobs = Blobs()
        self.leases = Leases(self.blobs)
        self.flags = Flags(self.leases.descriptor, is_owner=False).flags
        self.ended: list[int] = []
        self.leases.on_ended = self.ended.append
        self.fronts = [Front(self.leases) for _ in range(2)]

    def rows(self, content: bytes = b"trees") -> Rows:
        return Rows(self.blobs.put(content))

    def give(self, rows: Rows, front: int = 0) -> Lease:
        lease = self.leases.give(rows, self.fronts[front])
        assert lease is not None
        return lease

    def unload(self, rows: Rows) -> None:
        """As RowModels does."""
        self.leases.revoke(rows)
        self.blobs.drop(rows.blob)


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    for front in scene.fronts:
        front.channel.close()
        front.close()


def test_a_tenant_finds_what_it_has_leased(scene: Scene) -> None:
    rows = scene.rows(b"some trees")
    lease = scene.give(rows)

    address = scene.fronts[0].readable.address_of(lease.segment) + lease.offset
    assert ctypes.string_at(address, 10) == b"some trees"
    assert scene.flags[lease.slot] == 1
    assert lease.default_accept == "text/csv"


def test_a_revoked_lease_does_not_hold_and_its_place_is_kept_until_all_have_returned_it(scene: Scene) -> None:
    rows = scene.rows(b"x" * 4096)
    mine, others = scene.give(rows), scene.give(rows, 1)
    used = scene.blobs.used_bytes
    assert mine.slot == others.slot

    scene.unload(rows)
    assert scene.flags[mine.slot] == 0
    assert [front.told for front in scene.fronts] == [[mine.slot], [mine.slot]]
    assert scene.blobs.used_bytes == used

    scene.leases.returned(mine.slot, mine.serial, scene.fronts[0])
    assert scene.blobs.used_bytes == used
    assert scene.ended == []
    scene.leases.returned(others.slot, others.serial, scene.fronts[1])
    assert scene.blobs.used_bytes == 0
    assert scene.ended == [mine.slot]


def test_a_slot_is_used_again_when_nobody_has_it(scene: Scene) -> None:
    first, second = scene.rows(), scene.rows()
    lease = scene.give(first)
    scene.unload(first)

    assert scene.give(second).slot != lease.slot
    scene.leases.returned(lease.slot, lease.serial, scene.fronts[0])
    assert scene.give(scene.rows()).slot == lease.slot
    assert scene.flags[lease.slot] == 1


def test_a_return_that_crosses_a_new_lease_does_not_count(scene: Scene) -> None:
    """The tenant has not seen yet that it was given it again."""
    rows = scene.rows(b"x" * 4096)
    old, new = scene.give(rows), scene.give(rows)

    scene.leases.returned(old.slot, old.serial, scene.fronts[0])
    scene.unload(rows)
    assert scene.blobs.used_bytes > 0
    scene.leases.returned(new.slot, new.serial, scene.fronts[0])
    assert scene.blobs.used_bytes == 0


def test_what_is_leased_again_after_it_was_revoked_stays(scene: Scene) -> None:
    """An endpoint has changed, the model is the same: the old lease's return must not free the new one's memory."""
    rows = scene.rows(b"x" * 4096)
    old = scene.give(rows)
    scene.leases.revoke(rows)
    new = scene.give(rows)
    assert (scene.flags[old.slot], scene.flags[new.slot]) == (0, 1)

    scene.leases.returned(old.slot, old.serial, scene.fronts[0])
    scene.unload(rows)
    assert scene.blobs.used_bytes > 0
    scene.leases.returned(new.slot, new.serial, scene.fronts[0])
    assert scene.blobs.used_bytes == 0


def test_a_lease_that_all_have_given_back_is_none(scene: Scene) -> None:
    rows = scene.rows()
    lease = scene.give(rows)
    scene.leases.returned(lease.slot, lease.serial, scene.fronts[0])

    assert scene.flags[lease.slot] == 0
    assert scene.ended == [lease.slot]
    scene.unload(rows)
    assert scene.fronts[0].told == []
    assert scene.blobs.used_bytes == 0


def test_a_front_that_ends_holds_nothing(scene: Scene) -> None:
    kept, dropped = scene.rows(b"x" * 4096), scene.rows(b"y" * 4096)
    scene.give(kept)
    scene.give(kept, 1)
    scene.give(dropped)
    scene.unload(dropped)
    used = scene.blobs.used_bytes
    scene.leases.gone(scene.fronts[0])

    assert scene.blobs.used_bytes < used
    assert scene.flags[scene.give(kept, 1).slot] == 1


def test_a_front_without_the_segment_is_given_no_lease(scene: Scene) -> None:
    rows = scene.rows()
    scene.fronts[0].channel.close()

    assert scene.leases.give(rows, scene.fronts[0]) is None
    assert set(scene.flags[:8]) == {0}
    scene.unload(rows)
    assert scene.blobs.used_bytes == 0


def test_more_leases_than_slots_are_not_given(scene: Scene) -> None:
    scene.leases._fresh_slot = module.SLOTS - 1
    scene.give(scene.rows())

    assert scene.leases.give(scene.rows(), scene.fronts[0]) is None


def run(case: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(case(), 120))


def test_who_waits_is_told_when_the_last_has_returned_it(scene: Scene) -> None:
    async def case() -> None:
        rows = scene.rows()
        lease = scene.give(rows)
        scene.unload(rows)
        waiting = asyncio.ensure_future(scene.leases.settled(rows))
        await asyncio.sleep(0)
        assert not waiting.done()
        scene.leases.returned(lease.slot, lease.serial, scene.fronts[0])
        await waiting

    run(case)


def test_nobody_waits_for_what_is_not_leased(scene: Scene) -> None:
    async def case() -> None:
        rows = scene.rows()
        scene.unload(rows)
        await scene.leases.settled(rows)

    run(case)


def test_a_front_that_does_not_return_it_is_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stuck, and may be reading: nothing is put there before its end."""

    async def case() -> None:
        rows = scene.rows()
        scene.give(rows)
        scene.unload(rows)
        await scene.leases.settled(rows)
        assert scene.fronts[0].is_aborted
        assert scene.blobs.used_bytes == 0

    monkeypatch.setattr(module, "_PATIENCE_SECS", 0.01)
    run(case)
