"""
What a front counts of the calls that it answers itself, in memory that it shares with the keeper.

The front only ever adds, and the keeper takes what was added since it looked last. So nothing is lost when a front
ends, and neither waits for the other.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from polyhost.endpoint.measures import Calls, Histogram
from polyhost.endpoint.measures.histogram import BOUNDS_SECS
from polyhost.engine.native.leases import SLOTS

# Variants of endpoints that may be counted.
LANES = 256
_CLASSES = len(BOUNDS_SECS) + 1
# A lane has three: the whole call's time, the model's, and the rest.
_HISTOGRAMS = 3
_LANE_CLASSES = _HISTOGRAMS * _CLASSES
# A slot is noted once in each of the keeper's rounds, of which two may not have been looked at.
_NOTES = 2 * SLOTS
_SIZES = {
    "head": 64,
    "notes": 4 * _NOTES,
    "noted_in": 4 * SLOTS,
    "calls": 8 * SLOTS,
    "secs": 8 * SLOTS,
    "last_used": 8 * SLOTS,
    "lane_calls": 8 * LANES * _LANE_CLASSES,
    "lane_secs": 8 * LANES * _LANE_CLASSES,
}
_ROUND, _NOTED = 0, 1


class Used(NamedTuple):
    """A model, since it was looked at last. `last_used`: by time.time()."""

    slot: int
    calls: int
    secs: float
    last_used: float


class _Memory:
    """What is where. Pages that were not written to take no memory."""

    def __init__(self, descriptor: int) -> None:
        memory = memoryview(mmap.mmap(descriptor, sum(_SIZES.values())))
        begin = 0
        parts = {}
        for name, count_bytes in _SIZES.items():
            parts[name] = memory[begin : begin + count_bytes]
            begin += count_bytes
        self.head = parts["head"].cast("Q")
        self.notes = parts["notes"].cast("I")
        self.noted_in = parts["noted_in"].cast("I")
        self.calls = parts["calls"].cast("Q")
        self.secs = parts["secs"].cast("d")
        self.last_used = parts["last_used"].cast("d")
        self.lane_calls = parts["lane_calls"].cast("Q")
        self.lane_secs = parts["lane_secs"].cast("d")


class Counter:
    """The front's side."""

    def __init__(self, descriptor: int) -> None:
        self._memory = _Memory(descriptor)

    def add(self, slot: int, lane: int, total_secs: float, model_secs: float) -> None:
        """A call that a leased model has answered."""
        memory = self._memory
        memory.calls[slot] += 1
        memory.secs[slot] += model_secs
        memory.last_used[slot] = time.time()
        head = memory.head
        this_round = head[_ROUND]
        if memory.noted_in[slot] != this_round:
            memory.noted_in[slot] = this_round
            noted = head[_NOTED]
            memory.notes[noted % _NOTES] = slot
            head[_NOTED] = noted + 1
        calls, secs = memory.lane_calls, memory.lane_secs
        begin = lane * _LANE_CLASSES
        for value in (total_secs, model_secs, total_secs - model_secs):
            place = begin + bisect_left(BOUNDS_SECS, value)
            calls[place] += 1
            secs[place] += value
            begin += _CLASSES


class Counted:
    """The keeper's side, of one front's process."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("polyhost-counts", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, sum(_SIZES.values()))
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._memory = _Memory(self.descriptor)
        self._memory.head[_ROUND] = 1
        self._looked_at = 0
        self._seen: dict[int, tuple[int, float]] = {}
        self._seen_lanes: dict[int, tuple[list[int], list[float]]] = {}

    def close(self) -> None:
        """Nothing is taken any more."""
        os.close(self.descriptor)

    def take_used(self) -> Iterator[Used]:
        """The models that were used since the last time."""
        memory = self._memory
        # Modulo: what the front compares it with has four bytes. 0 is what was never noted.
        memory.head[_ROUND] = memory.head[_ROUND] % (2**32 - 1) + 1
        noted = memory.head[_NOTED]
        for note in range(self._looked_at, noted):
            slot = memory.notes[note % _NOTES]
            before_calls, before_secs = self._seen.get(slot, (0, 0.0))
            calls, secs = memory.calls[slot], memory.secs[slot]
            self._seen[slot] = calls, secs
            if calls != before_calls:
                yield Used(slot, calls - before_calls, secs - before_secs, memory.last_used[slot])
        self._looked_at = noted

    def take_calls(self, lanes: int) -> Iterator[tuple[int, Calls]]:
        """The calls since the last time of each of the first `lanes` variants that had some."""
        for lane in range(lanes):
            begin, end = lane * _LANE_CLASSES, (lane + 1) * _LANE_CLASSES
            calls = self._memory.lane_calls[begin:end].tolist()
            before = self._seen_lanes.get(lane)
            if calls == (before[0] if before else [0] * _LANE_CLASSES):
                continue
            secs: list[float] = [*self._memory.lane_secs[begin:end]]
            self._seen_lanes[lane] = calls, secs
            if before:
                calls = [now - then for now, then in zip(calls, before[0], strict=True)]
                secs = [now - then for now, then in zip(secs, before[1], strict=True)]
            parts = [slice(begin, begin + _CLASSES) for begin in range(0, _LANE_CLASSES, _CLASSES)]
            yield lane, Calls(*(Histogram.of(calls[part], secs[part]) for part in parts))

    def forget(self, slot: int) -> None:
        """Another model may get the slot."""
        self._memory.calls[slot] = 0
        self._memory.secs[slot] = 0.0
        self._seen.pop(slot, None)
