"""The memory of compiled models: what was put is there, and what was dropped is given back to the system."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import socket
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from polyhost.engine.native.blobs import Blob, Blobs
from polyhost.engine.native.segments import Readable, Segment, new_channel
from support.forms import examples

PAGE = os.sysconf("SC_PAGE_SIZE")
SEGMENT = 16 * PAGE


def content_of(blob: Blob) -> bytes:
    return ctypes.string_at(blob.address, blob.length_bytes)


def taken_bytes(blobs: Blobs) -> int:
    return sum(room.segment.taken_bytes for room in blobs._rooms)


LENGTHS = st.one_of(st.integers(1, 200), st.integers(1, 3 * PAGE), st.sampled_from([PAGE, SEGMENT]))


# Which of those that are there: the same ones are chosen again after the same steps, wherever they lie.
WHICH = st.integers(0, 1000)


class Places(RuleBasedStateMachine):
    """Against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs = Blobs(SEGMENT)
        self.here: dict[Blob, bytes] = {}
        # What was dropped and is read, by reader.
        self.read: dict[tuple[Blob, str], bytes] = {}

    @rule(length=LENGTHS)
    def put(self, length: int) -> None:
        content = random.Random(length + len(self.here)).randbytes(length)
        self.here[self.blobs.put(content)] = content

    @rule(which=WHICH)
    def drop(self, which: int) -> None:
        if self.here:
            blob = [*self.here][which % len(self.here)]
            del self.here[blob]
            self.blobs.drop(blob)

    @rule(which=WHICH, reader=st.sampled_from("ab"))
    def lend(self, which: int, reader: str) -> None:
        if self.here:
            blob = [*self.here][which % len(self.here)]
            self.blobs.lend(blob, reader)
            self.read[blob, reader] = self.here[blob]

    @rule(which=WHICH)
    def give_back(self, which: int) -> None:
        if self.read:
            blob, reader = [*self.read][which % len(self.read)]
            del self.read[blob, reader]
            self.blobs.give_back(blob, reader)

    @rule(which=WHICH, reader=st.sampled_from("ab"))
    def give_back_all(self, which: int, reader: str) -> None:
        mine = [None, *(blob for blob, by in self.read if by == reader)]
        but = mine[which % len(mine)]
        self.read = {key: content for key, content in self.read.items() if key[1] != reader or key[0] is but}
        self.blobs.give_back_all(reader, but)

    @invariant()
    def all_are_whole(self) -> None:
        """What is read too, though it was dropped."""
        assert all(content_of(blob) == content for blob, content in self.here.items())
        assert all(content_of(blob) == content for (blob, _), content in self.read.items())

    @invariant()
    def it_counts_what_the_kernel_counts(self) -> None:
        assert taken_bytes(self.blobs) <= self.blobs.used_bytes

    @invariant()
    def nothing_is_kept_for_nobody(self) -> None:
        kept = {*self.here, *(blob for blob, _ in self.read)}
        assert self.blobs.used_bytes <= sum(blob.length_bytes * 17 // 16 + 64 + 2 * PAGE for blob in kept)

    def teardown(self) -> None:
        self.blobs.give_back_all("a")
        self.blobs.give_back_all("b")
        for blob in self.here:
            self.blobs.drop(blob)
        assert self.blobs.used_bytes == taken_bytes(self.blobs) == 0


TestPlaces = Places.TestCase
TestPlaces.settings = settings(max_examples=examples(20), stateful_step_count=40)


def test_many_models_share_a_segment_and_come_back() -> None:
    """A hundred thousand of 600 bytes lie in one segment; dropped in any order, all memory is free again."""
    blobs = Blobs()
    kept = [blobs.put(number.to_bytes(4, "little") * 150) for number in range(100_000)]

    assert len(blobs._rooms) == 1
    assert taken_bytes(blobs) == blobs.used_bytes < 100_000 * 660
    assert content_of(kept[77_777])[:4] == (77_777).to_bytes(4, "little")
    random.Random(1).shuffle(kept)
    for blob in kept:
        blobs.drop(blob)
    assert taken_bytes(blobs) == blobs.used_bytes == 0


def test_models_that_come_and_go_for_long_take_no_more_segments() -> None:
    """Some stay in each; lengths are all different."""
    blobs = Blobs(64 * PAGE)
    rolls = random.Random(1)
    here = [blobs.put(b"x" * rolls.randint(1000, 3000)) for _ in range(500)]
    before = len(blobs._rooms)
    for _ in range(20_000):
        blobs.drop(here.pop(rolls.randrange(len(here))))
        here.append(blobs.put(b"x" * rolls.randint(1000, 3000)))

    assert len(blobs._rooms) < 2 * before


def test_a_full_machine_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left half made: what fits later is whole."""
    blobs = Blobs(SEGMENT)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    for name in ("memfd_create", "pwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(OSError, match="Cannot allocate memory"):
                blobs.put(b"x")
        assert blobs.used_bytes == taken_bytes(blobs) == 0
    assert content_of(blobs.put(b"y")) == b"y"
    with pytest.raises(OSError, match="a segment has"):
        blobs.put(bytes(SEGMENT + 1))


def test_who_reads_a_segment_sees_what_is_written_later() -> None:
    """By its number, in whatever order the segments were passed."""
    ours, theirs = new_channel()
    with ours, theirs:
        readable = Readable(theirs)
        segments = [Segment(number, SEGMENT) for number in (7, 8)]
        for segment in segments:
            segment.pass_to(ours)
        segments[1].write(100, b"there")

        assert ctypes.string_at(readable.address_of(8) + 100, 5) == b"there"
        segments[0].write(PAGE, b"later")
        assert ctypes.string_at(readable.address_of(7) + PAGE, 5) == b"later"
        ours.close()
        with pytest.raises(ConnectionResetError):
            readable.address_of(9)


def test_who_reads_a_segment_can_neither_write_nor_cut_it() -> None:
    """Not through the descriptor that is passed."""
    ours, theirs = new_channel()
    segment = Segment(1, SEGMENT)
    segment.write(0, b"good")
    with ours, theirs:
        segment.pass_to(ours)
        _, (descriptor,), _, _ = socket.recv_fds(theirs, 64, 1)
    attempts: tuple[Callable[[], object], ...] = (
        lambda: os.write(descriptor, b"evil"),
        lambda: os.ftruncate(descriptor, 0),
        lambda: os.posix_fallocate(descriptor, 0, 2 * SEGMENT),
        lambda: mmap.mmap(descriptor, SEGMENT, mmap.MAP_SHARED, mmap.PROT_WRITE),
        lambda: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        # The front itself, and so whoever runs as the same user and opens the file again.
        lambda: os.ftruncate(segment._descriptor, PAGE),
        lambda: os.ftruncate(segment._descriptor, 2 * SEGMENT),
    )
    for attempt in attempts:
        with pytest.raises(OSError, match=r"Bad file descriptor|Permission denied|Invalid argument|not permitted"):
            attempt()
    os.close(descriptor)
    assert ctypes.string_at(segment.address, 4) == b"good"


def test_a_mapped_segment_cannot_be_made_writable_and_keeps_no_descriptor() -> None:
    """What runs in the reader's process later finds none to open again."""
    ours, theirs = new_channel()
    segment = Segment(1, SEGMENT)
    with ours, theirs:
        segment.pass_to(ours)
        before = os.listdir("/proc/self/fd")
        address = Readable(theirs).address_of(1)
        assert os.listdir("/proc/self/fd") == before
    libc = ctypes.CDLL(None, use_errno=True)
    made = libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)
    assert (made, ctypes.get_errno()) == (-1, errno.EACCES)
