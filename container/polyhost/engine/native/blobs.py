"""
The memory of compiled models: large segments, in which each model has a place.

However many models there are, mappings and descriptors stay few: the kernel allows a process 65,530 mappings. What is
dropped gives its pages back to the system, once no worker reads it any more.
"""

from __future__ import annotations

import itertools
import mmap
from array import array
from collections import defaultdict
from collections.abc import Hashable

from polyhost.engine.native.segments import Segment

SEGMENT_BYTES = 64 * 1024**2
_ALIGNMENT_BYTES = 64
_PAGE_BYTES = mmap.PAGESIZE
# Places have few lengths, so that one that was dropped fits another model: at most a sixteenth of a place is unused.
_STEPS = 16


class Blob:
    """Where a model lies. It stays there until it is dropped."""

    __slots__ = ("length_bytes", "offset", "room")

    def __init__(self, room: Room, offset: int, length_bytes: int) -> None:
        self.room = room
        self.offset = offset
        self.length_bytes = length_bytes

    @property
    def segment(self) -> Segment:
        return self.room.segment

    @property
    def address(self) -> int:
        return self.room.segment.address + self.offset


class Room:
    """A segment, and what of it is taken."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        # How many blobs lie in each page, or partly.
        self.blobs_in_page = array("H", bytes(2 * (segment.count_bytes // _PAGE_BYTES)))
        self.blobs = 0
        # What no blob has been in yet.
        self.begin_of_free = 0
        # Places that were dropped, by their length.
        self.dropped: defaultdict[int, list[int]] = defaultdict(list)


class Blobs:
    """The one owner of the segments."""

    def __init__(self, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._segment_bytes = segment_bytes
        self._numbers = itertools.count(1)
        self._rooms: list[Room] = []
        # Rooms with a free end: first those that are empty again, last the one that is being filled.
        self._open: list[Room] = []
        # Where a place of a length is free.
        self._rooms_for: defaultdict[int, dict[Room, None]] = defaultdict(dict)
        self._pages = 0
        # What each reader in another process may be reading, and what was dropped meanwhile.
        self._lent: defaultdict[Hashable, set[Blob]] = defaultdict(set)
        self._unwanted: set[Blob] = set()

    @property
    def used_bytes(self) -> int:
        """The memory that is used, in whole pages."""
        return self._pages * _PAGE_BYTES

    def put(self, content: bytes) -> Blob:
        """Raises OSError where the system has no more memory for it, or none so large."""
        length_bytes = _place_bytes(len(content))
        if length_bytes > self._segment_bytes:
            raise OSError(f"it has {len(content)} bytes, a segment has {self._segment_bytes}")
        room, offset = self._place_for(length_bytes)
        try:
            room.segment.write(offset, content)
        except OSError:
            self._take(room, offset, length_bytes)  # what was written goes as a whole
            self._free(Blob(room, offset, len(content)))
            raise
        self._take(room, offset, length_bytes)
        return Blob(room, offset, len(content))

    def drop(self, blob: Blob) -> None:
        """Once for each blob; its memory is free when nobody has borrowed it any more."""
        if any(blob in lent for lent in self._lent.values()):
            self._unwanted.add(blob)
        else:
            self._free(blob)

    # Readers in other processes

    def lend(self, blob: Blob, reader: Hashable) -> None:
        self._lent[reader].add(blob)

    def give_back(self, blob: Blob, reader: Hashable) -> None:
        """It reads it no more."""
        self._lent[reader].discard(blob)
        self._free_if_unwanted([blob])

    def give_back_all(self, reader: Hashable, but: Blob | None = None) -> None:
        lent = self._lent.pop(reader, set())
        if but in lent:
            self._lent[reader].add(but)
        self._free_if_unwanted([blob for blob in lent if blob is not but])

    def _free_if_unwanted(self, blobs: list[Blob]) -> None:
        for blob in self._unwanted.intersection(blobs):
            if not any(blob in lent for lent in self._lent.values()):
                self._unwanted.discard(blob)
                self._free(blob)

    # Places

    def _place_for(self, length_bytes: int) -> tuple[Room, int]:
        rooms = self._rooms_for.get(length_bytes)
        if rooms:
            room = next(reversed(rooms))
            offset = room.dropped[length_bytes].pop()
            if not room.dropped[length_bytes]:
                del rooms[room]
            return room, offset
        while self._open and self._open[-1].segment.count_bytes - self._open[-1].begin_of_free < length_bytes:
            self._open.pop()
        if not self._open:
            room = Room(Segment(next(self._numbers), self._segment_bytes))
            self._rooms.append(room)
            self._open.append(room)
        room = self._open[-1]
        room.begin_of_free += length_bytes
        return room, room.begin_of_free - length_bytes

    def _take(self, room: Room, offset: int, length_bytes: int) -> None:
        room.blobs += 1
        for page in _pages_of(offset, length_bytes):
            self._pages += not room.blobs_in_page[page]
            room.blobs_in_page[page] += 1

    def _free(self, blob: Blob) -> None:
        room, length_bytes = blob.room, _place_bytes(blob.length_bytes)
        room.blobs -= 1
        empty = []
        for page in _pages_of(blob.offset, length_bytes):
            room.blobs_in_page[page] -= 1
            if not room.blobs_in_page[page]:
                empty.append(page)
        self._pages -= len(empty)
        if empty:  # side by side: what lies between two of them was the blob's own
            room.segment.give_back(empty[0] * _PAGE_BYTES, len(empty) * _PAGE_BYTES)
        if room.blobs:
            room.dropped[length_bytes].append(blob.offset)
            self._rooms_for[length_bytes][room] = None
        else:
            self._begin_again(room)

    def _begin_again(self, room: Room) -> None:
        """It is empty. It stays mapped here and by its readers, for what comes next."""
        for length_bytes in room.dropped:
            self._rooms_for[length_bytes].pop(room, None)
        room.dropped.clear()
        room.begin_of_free = 0
        if room not in self._open:
            self._open.insert(0, room)


def _place_bytes(length_bytes: int) -> int:
    length_bytes = max(1, length_bytes)
    step = max(_ALIGNMENT_BYTES, (1 << length_bytes.bit_length() - 1) // _STEPS)
    return -(-length_bytes // step) * step


def _pages_of(offset: int, length_bytes: int) -> range:
    return range(offset // _PAGE_BYTES, (offset + length_bytes - 1) // _PAGE_BYTES + 1)
