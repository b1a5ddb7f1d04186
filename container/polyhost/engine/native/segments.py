"""
Memory that processes share: one of them writes, the others map it and can only read.

A segment's descriptor is passed once to each reader, over a Unix socket of its own, opened for reading; the reader
closes it when it has mapped it. Nobody can make a segment smaller, which would end whoever reads what is gone.

The workers of all Python environments import this module.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os
import socket
import struct
import weakref

logger = logging.getLogger("polyhost.engine")

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_FAILED = ctypes.c_void_p(-1).value
# linux/falloc.h: give the pages back, and leave the size as it is.
_PUNCH_HOLE = 0x02 | 0x01
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# With each descriptor: the segment's number and its bytes.
_PASSED = struct.Struct("<QQ")
_WAIT_SECS = 10.0


def _mapped(descriptor: int, count_bytes: int) -> int:
    """The address at which it can be read. Raises OSError."""
    address = _LIBC.mmap(None, count_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        raise _os_error()
    return int(address)


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class Segment:
    """
    One that this process owns. Pages to which nothing was written take no memory.

    It is written through its descriptor: a full machine is an error then, not the end of the process.
    """

    def __init__(self, number: int, count_bytes: int) -> None:
        """Raises OSError."""
        self.number = number
        self.count_bytes = count_bytes
        self._descriptor = os.memfd_create("polyhost-models", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._descriptor, count_bytes)
            os.fchmod(self._descriptor, 0o400)  # what was opened for reading cannot be opened again for writing
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self.address = _mapped(self._descriptor, count_bytes)
        except BaseException:
            os.close(self._descriptor)
            raise
        weakref.finalize(self, _close, self._descriptor, self.address, count_bytes).atexit = False

    @property
    def taken_bytes(self) -> int:
        """As the kernel counts it."""
        return os.fstat(self._descriptor).st_blocks * 512

    def write(self, offset: int, content: bytes) -> None:
        """Raises OSError where the system has no more memory for it."""
        rest = memoryview(content)
        while rest:
            count = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[count:], offset + count

    def give_back(self, offset: int, count_bytes: int) -> None:
        """Whole pages; whoever reads them afterwards reads zeros."""
        if _LIBC.fallocate(self._descriptor, _PUNCH_HOLE, offset, count_bytes):
            raise _os_error()

    def pass_to(self, channel: socket.socket) -> None:
        """Raises OSError."""
        reading = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(channel, [_PASSED.pack(self.number, self.count_bytes)], [reading])
        finally:
            os.close(reading)


def _close(descriptor: int, address: int, count_bytes: int) -> None:
    _LIBC.munmap(address, count_bytes)
    os.close(descriptor)


class Channel:
    """The owner's end of what segments are passed over to one reader."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # The numbers of the segments that were passed.
        self._passed: set[int] = set()

    def has_passed(self, segment: Segment) -> bool:
        """Whether the reader has the segment, for what it is told next."""
        if segment.number not in self._passed:
            try:
                segment.pass_to(self._connection)
            except OSError as error:
                logger.warning("a worker cannot be given what is compiled, and reads archives: %s", error)
                return False
            self._passed.add(segment.number)
        return True

    def close(self) -> None:
        self._connection.close()


class Readable:
    """The segments of another process, mapped when they are first asked for."""

    def __init__(self, channel: socket.socket) -> None:
        """What comes over `channel` was passed before anybody names it."""
        self._channel = channel
        self._channel.settimeout(_WAIT_SECS)
        self._addresses: dict[int, int] = {}

    def address_of(self, number: int) -> int:
        """Where the segment begins. Raises OSError."""
        while number not in self._addresses:
            self._receive()
        return self._addresses[number]

    def _receive(self) -> None:
        passed, descriptors, _, _ = socket.recv_fds(self._channel, _PASSED.size, 1)
        if not descriptors:
            raise ConnectionResetError("the front has closed the socket of its segments")
        try:
            number, count_bytes = _PASSED.unpack(passed)
            self._addresses[number] = _mapped(descriptors[0], count_bytes)
        finally:
            os.close(descriptors[0])


def new_channel() -> tuple[socket.socket, socket.socket]:
    """Both ends of what segments are passed over; ours does not wait."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs
