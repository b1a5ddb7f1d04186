"""The sockets that a server listens on."""

from __future__ import annotations

import asyncio
import socket

BACKLOG = 2048


async def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """One for each address that the host's name has. Raises OSError where somebody else listens there."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            sockets.append(socket.create_server(address, family=family, backlog=BACKLOG))
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    for listening in sockets:
        listening.setblocking(False)
    return sockets


def one_more(listening: socket.socket) -> socket.socket:
    """
    Another socket on the same address: the kernel gives each of them its share of the connections. Raises OSError.

    `listening` took the address for itself alone, and only then lets others in. So a second server on it still fails.
    """
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other = socket.create_server(listening.getsockname(), family=listening.family, backlog=BACKLOG, reuse_port=True)
    other.setblocking(False)
    return other
