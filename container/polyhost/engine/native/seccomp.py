"""
A filter of system calls: a small program that the kernel runs before each call (seccomp(2)).

`program` makes it, `install` gives it to the kernel for the calling thread and what it starts. Calls that it does not
name are allowed: it takes away what reaches other processes and the machine, and nothing that computing needs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT, _ARGUMENT_BYTES = 0, 4, 16, 8
_X32_CALLS = 0x40000000
# By `os.uname().machine`: the kernel's name for the machine, and which column of the table below is its.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_LIBC = ctypes.CDLL(None, use_errno=True)

_CLONE_NEW = 0x7E020080  # all CLONE_NEW flags: namespaces
_AF_UNIX = 1
_PRIO_USER = 2
_EVERYBODY = 0xFFFFFFFF  # -1

# The numbers of calls on x86_64 and on aarch64, which lacks the oldest ones.
_NUMBERS: Mapping[str, tuple[int, int | None]] = {
    # Other processes' memory and descriptors.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282),
    # Other processes' signals, limits and turns.
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "prlimit64": (302, 261),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "sched_setaffinity": (203, 122),
    # Memory and queues that all of a user's processes share by name; the keys of the user.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219),
    # Calls that this filter does not see through.
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "clone3": (435, 435),
    # File systems and namespaces.
    "clone": (56, 220), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "quotactl": (179, 60), "quotactl_fd": (443, 443), "truncate": (76, 45),
    "inotify_add_watch": (254, 27), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    # The machine.
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, None), "ioperm": (173, None),
    # What is written down of files, which Landlock leaves to everybody who finds them.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469),
    "socket": (41, 198),
}  # fmt: skip

_NO_SUCH_CALL = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")  # libraries know another way
_FORBIDDEN = (
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "pidfd_getfd", "kcmp",
    "perf_event_open", "bpf", "userfaultfd", "shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl",
    "msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "add_key", "request_key", "keyctl", "unshare",
    "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount",
    "fspick", "mount_setattr", "open_tree_attr", "name_to_handle_at", "open_by_handle_at", "quotactl", "quotactl_fd",
    "inotify_add_watch", "fanotify_init", "fanotify_mark", "init_module", "finit_module", "delete_module",
    "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "acct", "syslog", "settimeofday",
    "clock_settime", "adjtimex", "clock_adjtime", "sethostname", "setdomainname", "iopl", "ioperm", "file_setattr",
)  # fmt: skip
# They do nothing and say that they did: programs that copy files want them, and nobody needs them here.
_WITHOUT_EFFECT = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes",
    "futimesat", "utimensat",
)  # fmt: skip
_NOT_SUPPORTED = (
    "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "setxattrat", "removexattrat",
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """
    A call fails with `error` when one of the conditions holds, or always where there is no condition; 0 means success.

    `unless`: an argument by its place is none of these. `where`: it is one of these. `has`: it has one of these bits.
    """

    call: str
    error: int
    unless: tuple[int, tuple[int, ...]] | None = None
    where: tuple[int, tuple[int, ...]] | None = None
    has: tuple[int, int] | None = None


@dataclass(frozen=True)
class Wanted:
    """What is to be kept from a process. `guarded_pids`: no signals to these; None leaves signals to Landlock."""

    syscalls: bool = True
    network: bool = True
    guarded_pids: tuple[int, ...] | None = None
    # Whether truncating by path must be refused here, because this kernel's Landlock does not.
    truncate: bool = False


def is_supported() -> bool:
    """Whether this kernel takes filters, and whether we know this machine's calls."""
    ctypes.set_errno(0)
    _LIBC.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT and os.uname().machine in _MACHINES


def rules(wanted: Wanted) -> list[Rule]:
    found: list[Rule] = []
    if wanted.syscalls:
        found += _rules_of_calls()
    if wanted.truncate:
        found.append(Rule("truncate", errno.EPERM))
    if wanted.network:
        found.append(Rule("socket", errno.EACCES, unless=(0, (_AF_UNIX,))))
    if wanted.guarded_pids is not None:
        found += _rules_of_signals(wanted.guarded_pids)
    if (wanted.network or wanted.guarded_pids is not None) and not wanted.syscalls:
        found += [Rule(call, errno.ENOSYS) for call in _NO_SUCH_CALL if call != "clone3"]
    return found


def _rules_of_calls() -> list[Rule]:
    own = (0, (0,))  # the first argument names a process; 0 is the caller's own
    return [
        *(Rule(call, errno.ENOSYS) for call in _NO_SUCH_CALL),
        *(Rule(call, errno.EPERM) for call in _FORBIDDEN),
        *(Rule(call, 0) for call in _WITHOUT_EFFECT),
        *(Rule(call, errno.ENOTSUP) for call in _NOT_SUPPORTED),
        *(Rule(call, errno.EPERM, unless=own) for call in ("prlimit64", "sched_setscheduler", "sched_setparam")),
        Rule("sched_setattr", errno.EPERM, unless=own),
        # Threads of pools name themselves: where they run is of no account, and a refusal fills the log.
        Rule("sched_setaffinity", 0, unless=own),
        Rule("clone", errno.EPERM, has=(0, _CLONE_NEW)),
        Rule("setpriority", errno.EPERM, where=(0, (_PRIO_USER,)), unless=(1, (0,))),
        Rule("ioprio_set", errno.EPERM, unless=(1, (0,))),
    ]


def _rules_of_signals(guarded_pids: Sequence[int]) -> list[Rule]:
    """A filter knows no families: it keeps signals from the processes that it is told of, and from all at once."""
    groups = tuple((-pid) & 0xFFFFFFFF for pid in guarded_pids)
    guarded = (*guarded_pids, *groups, _EVERYBODY)
    return [
        *(Rule(call, errno.EPERM, where=(0, guarded)) for call in ("kill", "tgkill", "rt_sigqueueinfo")),
        Rule("rt_tgsigqueueinfo", errno.EPERM, where=(0, guarded)),
        Rule("tkill", errno.EPERM),
        Rule("pidfd_send_signal", errno.EPERM),
    ]


def program(machine: str, wanted: Wanted) -> bytes:
    """The filter for a kind of machine, in the kernel's own form."""
    name, column = _MACHINES[machine]
    code = [(_LOAD, 0, 0, _MACHINE_AT), (_IF_EQUAL, 1, 0, name), _answer(_KILL_PROCESS), (_LOAD, 0, 0, _NUMBER_AT)]
    if machine == "x86_64":  # the same calls by other numbers
        code += [(_IF_AT_LEAST, 0, 1, _X32_CALLS), _answer(_ERRNO | errno.ENOSYS)]
    for rule in rules(wanted):
        number = _NUMBERS[rule.call][column]
        if number is not None:
            body = _body(rule)
            code += [(_IF_EQUAL, 0, len(body), number), *body]
    code.append(_answer(_ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


_Instruction = tuple[int, int, int, int]


def _answer(value: int) -> _Instruction:
    return (_RETURN, 0, 0, value)


def _body(rule: Rule) -> list[_Instruction]:
    refusal = _answer(_ERRNO | rule.error)
    code: list[_Instruction] = []
    if rule.where:
        place, values = rule.where
        code.append(_load_argument(place))
        for value in values:
            code += [(_IF_EQUAL, 0, 1, value), refusal]
    if rule.unless:
        place, values = rule.unless
        code.append(_load_argument(place))
        code += [(_IF_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
        code.append(refusal)
    if rule.has:
        place, bits = rule.has
        code += [_load_argument(place), (_IF_HAS, 0, 1, bits), refusal]
    return [*code, _answer(_ALLOW)] if code else [refusal]


def _load_argument(place: int) -> _Instruction:
    """Its lower half, which is all that the kernel looks at of an int (little-endian machines)."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + place * _ARGUMENT_BYTES)


def install(code: bytes) -> None:
    """For the calling thread and what it starts, for ever. Raises OSError."""
    buffer = ctypes.create_string_buffer(code, len(code))
    header = _Program(len(code) // 8, ctypes.addressof(buffer))
    if _LIBC.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(header), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))
