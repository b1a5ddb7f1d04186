"""
The package's build backend: setuptools, and a compiler for the library in C.

The compiler is the system's, `$CC` or `cc`. Where there is none it is Zig's, which comes as the Python package
`ziglang`. Where neither works the package is built without the library and says so: everything works, tree models
are predicted by XGBoost alone.

With `POLYHOST_BUILD_FOR=aarch64` Zig compiles for that machine, whichever this is, and the wheel carries its name. A
library that cannot be compiled is an error then.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - a backend is a module with these names

# No fused multiply-add, so that sums are rounded as XGBoost's are, on every processor.
_FLAGS = ("-O2", "-std=c11", "-ffp-contract=off", "-fPIC", "-shared")
_ZIG = (sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=all")
# By the machine: Zig's name of it with the oldest glibc that the library runs with, and the wheel's tag for both.
_TARGETS = {"aarch64": ("aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64")}


class NotCompiled(Exception):
    pass


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compilers()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compilers()]


def foreign_tag() -> str | None:
    """The platform that a wheel for another machine is of; None where it is for this one."""
    target = _target()
    return target[1] if target else None


def _target() -> tuple[str, str] | None:
    machine = os.environ.get("POLYHOST_BUILD_FOR", "")
    if machine and machine not in _TARGETS:
        raise NotCompiled(f"POLYHOST_BUILD_FOR={machine}: write one of {', '.join(_TARGETS)}, or leave it out.")
    return _TARGETS.get(machine)


def _compilers() -> list[str]:
    return [] if _system_compiler() and not _target() else ["ziglang"]


def _compiler() -> list[str]:
    if target := _target():
        return [*_ZIG, "-target", target[0]]
    return _system_compiler() or [*_ZIG]


def _system_compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", "cc"))
    return command if command and shutil.which(command[0]) else []


def compile_library(source: Path, target: Path) -> bool:
    """
    Compile `source` into the shared library `target`; whether that worked. Why it did not is printed.

    Raises NotCompiled for another machine.
    """
    command = [*_compiler(), *_FLAGS, "-o", str(target), str(source), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        reason = str(error)
    else:
        if done.returncode == 0:
            return True
        reason = done.stderr.strip()
    target.unlink(missing_ok=True)
    if _target():
        raise NotCompiled(f"{source.name} is not compiled: {reason}")
    sys.stderr.write(f"warning: {source.name} is not compiled, so tree models stay with XGBoost: {reason}\n")
    return False
