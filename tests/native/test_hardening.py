"""The hardened mode's decisions: which restrictions hold, what a kernel lacks, what the filter of calls answers."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from polyhost.config import RESTRICTIONS, Config
from polyhost.engine.native import seccomp
from polyhost.engine.native.hardening import Kernel, lacking, restrictions_of
from polyhost.engine.native.seccomp import Wanted, program
from polyhost.errors import InvalidSetting

ALL = frozenset(RESTRICTIONS)
NEWEST = Kernel(landlock_version=7, has_seccomp=True)


# What is decided before any process starts


@pytest.mark.parametrize(
    ("restrictions", "kernel", "words"),
    [
        (ALL, NEWEST, []),
        (ALL, Kernel(landlock_version=6, has_seccomp=True), []),
        (ALL, Kernel(landlock_version=5, has_seccomp=True), ["does not keep signals in"]),
        (ALL, Kernel(landlock_version=0, has_seccomp=True), ["has no Landlock", "does not keep signals in"]),
        (ALL, Kernel(landlock_version=7, has_seccomp=False), ["network, signals, syscalls are not restricted"]),
        (ALL - {"files", "signals"}, Kernel(landlock_version=0, has_seccomp=True), []),
        (frozenset({"limits", "workers"}), Kernel(landlock_version=0, has_seccomp=False), []),
    ],
)
def test_what_a_kernel_lacks_is_said(restrictions: frozenset[str], kernel: Kernel, words: list[str]) -> None:
    sentences = lacking(restrictions, kernel)
    assert len(sentences) == len(words)
    assert all(piece in sentence for piece, sentence in zip(words, sentences, strict=True))


def test_restrictions_are_switched_off_by_name() -> None:
    assert restrictions_of(Config(hardened=True)) == ALL
    assert restrictions_of(Config(hardened=True, hardened_without=("files", "network"))) == ALL - {"files", "network"}
    with pytest.raises(InvalidSetting, match="--hardened-without: 'landlock' is none of files, signals"):
        Config.build({"hardened_without": ("landlock",)}, {})


def test_shared_isolation_is_no_hardened_mode() -> None:
    with pytest.raises(InvalidSetting, match="--isolation shared lets models that bring code share a process"):
        restrictions_of(Config(hardened=True, isolation="shared"))
    assert restrictions_of(Config(hardened=True, isolation="shared", hardened_without=("workers",)))


@pytest.mark.parametrize(
    ("text", "is_on"), [("on", True), ("1", True), ("TRUE", True), ("yes", True), ("off", False), ("0", False)]
)
def test_the_mode_is_switched_by_a_variable_too(text: str, is_on: bool) -> None:
    assert Config.build({}, {"POLYHOST_HARDENED": text}).hardened is is_on
    with pytest.raises(InvalidSetting, match="POLYHOST_HARDENED: 'maybe' is neither on nor off"):
        Config.build({}, {"POLYHOST_HARDENED": "maybe"})


# The filter of system calls, run here as the kernel runs it

ALLOWED, KILLED = "allowed", "killed"
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
GUARDED = 4711


def verdict(code: bytes, number: int, arguments: Sequence[int], machine: int) -> str | int:
    """What the kernel does with a call: "allowed", "killed", or the error that it answers."""
    data = struct.pack("=IIQ6Q", number, machine, 0, *[value & (1 << 64) - 1 for value in (*arguments, *[0] * 6)][:6])
    instructions = list(struct.iter_unpack("=HBBI", code))
    register, at = 0, 0
    while True:
        kind, if_so, if_not, value = instructions[at]
        at += 1
        if kind == 0x06:
            action = value & 0xFFFF0000
            return ALLOWED if action == 0x7FFF0000 else KILLED if action == 0x80000000 else value & 0xFFFF
        if kind == 0x20:
            (register,) = struct.unpack_from("=I", data, value)
            continue
        is_so = {0x15: register == value, 0x35: register >= value, 0x45: bool(register & value)}[kind]
        at += if_so if is_so else if_not


EVERYTHING = Wanted(guarded_pids=(GUARDED,), truncate=True)
CALLS: list[tuple[str, tuple[int, ...], str | int]] = [
    ("ptrace", (16, 1), errno.EPERM),
    ("process_vm_readv", (1,), errno.EPERM),
    ("process_vm_writev", (1,), errno.EPERM),
    ("pidfd_getfd", (3, 0), errno.EPERM),
    ("io_uring_setup", (8,), errno.ENOSYS),
    ("clone3", (0, 88), errno.ENOSYS),
    ("clone", (0x01200011,), ALLOWED),  # fork, as glibc does it
    ("clone", (0x003D0F00,), ALLOWED),  # a thread
    ("clone", (0x10000000,), errno.EPERM),  # a user namespace
    ("clone", (0x00020000,), errno.EPERM),  # a mount namespace
    ("unshare", (0x10000000,), errno.EPERM),
    ("mount", (), errno.EPERM),
    ("socket", (1, 1), ALLOWED),
    ("socket", (2, 1), errno.EACCES),
    ("socket", (10, 2), errno.EACCES),
    ("socket", (16, 3), errno.EACCES),
    ("kill", (GUARDED, 9), errno.EPERM),
    ("kill", (-GUARDED, 9), errno.EPERM),
    ("kill", (-1, 9), errno.EPERM),
    ("kill", (4712, 9), ALLOWED),
    ("tgkill", (GUARDED, GUARDED, 9), errno.EPERM),
    ("tkill", (4712, 9), errno.EPERM),
    ("prlimit64", (0, 7), ALLOWED),
    ("prlimit64", (GUARDED, 7), errno.EPERM),
    ("setpriority", (0, 0, 5), ALLOWED),
    ("setpriority", (0, GUARDED, 19), errno.EPERM),
    ("setpriority", (2, 0, 19), errno.EPERM),
    ("sched_setaffinity", (0, 8), ALLOWED),
    ("sched_setaffinity", (GUARDED, 8), 0),
    ("fchmodat", (), 0),
    ("fchownat", (), 0),
    ("utimensat", (), 0),
    ("fsetxattr", (), errno.ENOTSUP),
    ("truncate", (), errno.EPERM),
    ("shmget", (), errno.EPERM),
    ("inotify_add_watch", (), errno.EPERM),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("call", "arguments", "expected"), CALLS)
def test_the_filter_answers(machine: str, call: str, arguments: tuple[int, ...], expected: str | int) -> None:
    number = seccomp._NUMBERS[call][list(MACHINES).index(machine)]
    assert number is not None
    assert verdict(program(machine, EVERYTHING), number, arguments, MACHINES[machine]) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_lets_pass_what_it_does_not_name(machine: str) -> None:
    named = {numbers[list(MACHINES).index(machine)] for numbers in seccomp._NUMBERS.values()}
    code = program(machine, EVERYTHING)
    others = [number for number in range(470) if number not in named]
    assert len(others) > 300
    assert {verdict(code, number, (), MACHINES[machine]) for number in others} == {ALLOWED}


def test_calls_of_another_machine_end_the_process() -> None:
    """32-bit calls have other numbers, which the filter would misread; x32 has the same ones beyond 2**30."""
    code = program("x86_64", EVERYTHING)
    assert verdict(code, 1, (), 0x40000003) == KILLED
    assert verdict(code, 0x40000000 + 39, (), MACHINES["x86_64"]) == errno.ENOSYS


@pytest.mark.parametrize(
    ("column", "header", "pattern"),
    [
        (0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+)\s+(\d+)"),
        (1, "/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
    ],
)
def test_numbers_of_calls_are_the_kernels(column: int, header: str, pattern: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed (linux-libc-dev)")
    known = {name: int(number) for name, number in re.findall(pattern, Path(header).read_text())}
    ours = {name: numbers[column] for name, numbers in seccomp._NUMBERS.items() if name in known}
    assert len(ours) > 80
    assert {name: number for name, number in ours.items() if number is not None} == {
        name: known[name] for name, number in ours.items() if number is not None
    }
