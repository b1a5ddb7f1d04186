"""What root may do and nobody else (capabilities(7)), given up for a process and all that it starts."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION = 0x20080522
# A server that runs as root may have to read models of others: Landlock says which.
_DAC_OVERRIDE = 1

_LIBC = ctypes.CDLL(None, use_errno=True)


def give_up_privileges() -> None:
    """
    Programs with the setuid bit gain nothing from now on, and of root's capabilities one is left at most.

    The kernel wants the first before it restricts a process. Raises OSError.
    """
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    permitted = _permitted()
    if not permitted:
        return
    for capability in range(permitted.bit_length()):
        if capability != _DAC_OVERRIDE:
            _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # only a second line: without CAP_SETPCAP it fails
    kept = permitted & (1 << _DAC_OVERRIDE)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    if _LIBC.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)):
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def _permitted() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            return int(line.split()[1], 16)
    return 0
