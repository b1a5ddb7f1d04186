"""Writes lines in a thread of its own, so that the server never waits for a slow reader of its log."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence

# What may wait to be written. The whole log of a second at 20,000 requests takes as much.
_MOST_CHARS = 4 * 1024 * 1024
# Lines of so long are written together.
_COLLECTING_SECS = 0.02
# The kernel writes so much to a pipe in one piece, so that no other process's line comes between.
_AT_A_TIME_BYTES = {True: select.PIPE_BUF, False: 64 * 1024}


class LineWriter:
    """
    What waits beyond a limit, because the reader is slow, is dropped and counted.

    `descriptor` becomes its own. `dropped_line`: the line that says how many were dropped, once there is room again.
    """

    def __init__(self, descriptor: int, dropped_line: Callable[[int], str]) -> None:
        self._descriptor = descriptor
        self._dropped_line = dropped_line
        self._at_a_time_bytes = _AT_A_TIME_BYTES[stat.S_ISFIFO(os.fstat(descriptor).st_mode)]
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._chars = self._dropped = 0
        self._something = threading.Event()
        self._is_hurried = threading.Event()
        self._is_idle = threading.Condition(self._lock)
        self._is_writing = False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        """`line` without its end. Any thread; never waits."""
        with self._lock:
            if self._chars + len(line) > _MOST_CHARS:
                self._dropped += 1
                return
            self._lines.append(line)
            self._chars += len(line) + 1
            is_first = len(self._lines) == 1
        if is_first:
            self._something.set()

    def flush(self, timeout_secs: float) -> bool:
        """Whether all that was written until now has gone to its reader within that time."""
        self._is_hurried.set()
        with self._is_idle:
            is_idle = self._is_idle.wait_for(lambda: not self._lines and not self._is_writing, timeout_secs)
        self._is_hurried.clear()
        return is_idle

    def _run(self) -> None:
        while True:
            self._something.wait()
            self._is_hurried.wait(_COLLECTING_SECS)
            self._write_out(self._take())
            with self._is_idle:
                self._is_writing = False
                self._is_idle.notify_all()

    def _take(self) -> list[str]:
        with self._lock:
            self._something.clear()
            lines, self._lines = self._lines, []
            dropped, self._dropped = self._dropped, 0
            self._chars = 0
            self._is_writing = True
        if dropped:
            lines.append(self._dropped_line(dropped))
        return lines

    def _write_out(self, lines: Sequence[str]) -> None:
        try:
            for piece in pieces(lines, self._at_a_time_bytes):
                self._write_piece(piece)
        except OSError:
            time.sleep(_COLLECTING_SECS)  # nobody reads any more: there is nobody to tell

    def _write_piece(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except BlockingIOError:  # somebody has made it non-blocking
                select.select([], [self._descriptor], [])


def pieces(lines: Sequence[str], at_a_time_bytes: int) -> Iterator[bytes]:
    """Whole lines, as many together as `at_a_time_bytes` allows, and at least one."""
    piece = bytearray()
    for line in lines:
        encoded = line.encode(errors="backslashreplace") + b"\n"
        if piece and len(piece) + len(encoded) > at_a_time_bytes:
            yield bytes(piece)
            piece.clear()
        piece += encoded
    if piece:
        yield bytes(piece)
