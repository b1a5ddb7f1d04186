"""What must go so that something else has room. Decides only, from what it is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class HasRoom(Protocol):
    """What takes room on the disk."""

    @property
    def disk_bytes(self) -> int: ...


Room = TypeVar("Room", bound=HasRoom)


def plan_eviction(need_bytes: int, free_bytes: int, unheld: Iterable[Room]) -> list[Room] | None:
    """
    What to delete so that `need_bytes` are free; `unheld`: least recently used first.

    None when deleting all of it would not do: then nothing is deleted in vain. What is not needed for it stays, as many
    small ones do before a large one that is enough alone.
    """
    victims: list[Room] = []
    entries = iter(unheld)
    while free_bytes < need_bytes:
        entry = next(entries, None)
        if entry is None:
            return None
        victims.append(entry)
        free_bytes += entry.disk_bytes
    spare_bytes = free_bytes - need_bytes
    needed: list[Room] = []
    for entry in reversed(victims):
        if entry.disk_bytes <= spare_bytes:
            spare_bytes -= entry.disk_bytes
        else:
            needed.insert(0, entry)
    return needed
