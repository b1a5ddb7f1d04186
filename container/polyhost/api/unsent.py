"""What a client has not taken yet of what was written to its connection."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios

# tcpi_bytes_acked of the kernel's struct tcp_info, since Linux 4.1.
_ACKED = struct.Struct("120xQ")


def unsent_and_taken_bytes(transport: asyncio.Transport) -> tuple[int, int]:
    """
    How much is on its way to the client, and a count that grows as the client takes some of it.

    A transport of TLS does not know what the one below it keeps. There it is the kernel that is asked: its queue is
    empty only when nothing is kept anywhere.
    """
    unsent_bytes = transport.get_write_buffer_size()
    if transport.get_extra_info("sslcontext") is None:
        return unsent_bytes, -unsent_bytes
    connection = transport.get_extra_info("socket")
    if connection is None:  # it is closed
        return 0, 0
    with contextlib.suppress(OSError, ValueError):  # as above
        acked = _ACKED.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.size))
        queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        return unsent_bytes + int.from_bytes(queued, "little"), acked[0]
    return unsent_bytes, 0
