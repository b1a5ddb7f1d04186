"""
What a worker of the hardened mode gives up before it runs any model: docs/security.md has the promises.

It happens in the forked worker, so that templates, which run no model's code, stay as they are. What a model starts
inherits it. Standard library only: it runs in every Python environment.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polyhost_handlers

import polyhost
from polyhost.engine.native import landlock, seccomp
from polyhost.engine.native.messages import Confine
from polyhost.engine.native.privileges import give_up_privileges

MAX_FILE_BYTES = 1024**3
MAX_DESCRIPTORS = 4096

# Programs, libraries and what they read of the machine. Of /etc only what names no secret.
SYSTEM_FOLDERS = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/proc", "/sys/devices/system", "/sys/fs/cgroup",
    "/sys/kernel/mm/transparent_hugepage",
    *(f"/etc/{name}" for name in (
        "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "passwd", "group", "nsswitch.conf",
        "hosts", "host.conf", "resolv.conf", "gai.conf", "services", "protocols", "mime.types", "magic", "os-release",
        "alternatives", "fonts", "ca-certificates", "pki/tls/certs", "pki/ca-trust", "ssl/certs", "ssl/openssl.cnf",
        "locale.alias", "debian_version",
    )),
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# Locks and memory that processes of one pool share lie here, under names that nobody guesses or lists.
_SHARED_MEMORY = "/dev/shm"  # noqa: S108


def framework_folders() -> list[str]:
    """
    Where this Python and all that it imports lie; not the folder that the server was started in.

    A folder above a home or at the root would open more than frameworks: the server's start refuses such a place of
    its secrets.
    """
    told = os.environ.get("PYTHONPATH", "").split(":") + os.environ.get("LD_LIBRARY_PATH", "").split(":")
    imported = [path for path in sys.path if path != os.getcwd()]
    packages = [str(Path(module.__file__ or "").parent) for module in (polyhost, polyhost_handlers)]
    return sorted({path for path in (sys.prefix, sys.base_prefix, *imported, *told, *packages) if path})


def confine(order: Confine) -> None:
    """Raises OSError where the kernel does not do what the front has found that it can."""
    rules = list(_rules(order))  # before variables of the container change what there is to import
    _take_variables(order)
    if "limits" in order.restrictions:
        _limit()
    give_up_privileges()
    _restrict(order, rules)


def _restrict(order: Confine, rules: list[tuple[str, int]]) -> None:
    holds = set(order.restrictions)
    landlock.restrict(
        order.landlock_version,
        rules if "files" in holds else None,
        network="network" in holds,
        signals="signals" in holds,
    )
    by_landlock = order.landlock_version >= landlock.SCOPES_VERSION
    wanted = seccomp.Wanted(
        syscalls="syscalls" in holds,
        network="network" in holds,
        guarded_pids=tuple(order.guarded_pids) if "signals" in holds and not by_landlock else None,
        truncate="files" in holds and order.landlock_version < landlock.TRUNCATE_VERSION,
    )
    if seccomp.rules(wanted) and seccomp.is_supported():
        seccomp.install(seccomp.program(os.uname().machine, wanted))


def _rules(order: Confine) -> Iterator[tuple[str, int]]:
    for path in (*SYSTEM_FOLDERS, *framework_folders(), *order.readable):
        yield path, landlock.READ
    for path in (*_DEVICES, order.temp):
        yield path, landlock.ALL
    yield _SHARED_MEMORY, landlock.UNLISTED


def _take_variables(order: Confine) -> None:
    """Its own folder is the home too: libraries keep caches there, and find no keys of the server's user."""
    own = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "JOBLIB_TEMP_FOLDER"), order.temp)
    os.environ.update({**own, **dict(order.environ)})
    os.environ["TMPDIR"] = tempfile.tempdir = order.temp
    for path in reversed(dict(order.environ).get("PYTHONPATH", "").split(":")):
        if path:
            sys.path.insert(0, path)


def _limit() -> None:
    for kind, wanted in (
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        least = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(kind, (least, least))
