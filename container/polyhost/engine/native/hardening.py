"""
The hardened mode, as the front decides it: which restrictions hold, what the kernel lacks for them, what a worker gets.
"""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhost.config import RESTRICTIONS, Config
from polyhost.engine.native import landlock, seccomp
from polyhost.engine.native.messages import Confine
from polyhost.engine.native.pool import Environment
from polyhost.engine.native.sandbox import SYSTEM_FOLDERS, framework_folders
from polyhost.engine.native.variables import worker_variables
from polyhost.environment import FETCHED_CODE, state_folder
from polyhost.errors import InvalidSetting
from polyhost.plan import Plan

logger = logging.getLogger("polyhost.engine")

_SUBMIT_DIRECTORY = "SAGEMAKER_SUBMIT_DIRECTORY"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What it has of what the hardened mode needs. `landlock_version`: 0 for none."""

    landlock_version: int
    has_seccomp: bool
    release: str = ""

    @classmethod
    def running(cls) -> Kernel:
        return cls(landlock_version=landlock.version(), has_seccomp=seccomp.is_supported(), release=platform.release())


@dataclass(frozen=True, kw_only=True)
class Hardening:
    restrictions: frozenset[str]
    kernel: Kernel
    # What workers of verified data, which many models share, may read: where models lie.
    model_folders: tuple[str, ...]
    # What all may read, by the operator's own settings.
    readable: tuple[str, ...]
    temp_root: Path

    @property
    def has_own_workers(self) -> bool:
        """Whether a pickle gets a worker of its own, as code does."""
        return "workers" in self.restrictions

    def new_temp(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.temp_root, prefix="worker-"))

    def order(
        self, number: int, environment: Environment, folder: Path | None, temp: Path, guarded_pids: Sequence[int],
    ) -> Confine:  # fmt: skip
        """What a new worker gives up. `folder`: of the one model that it is for, None for a shared worker."""
        variables = worker_variables(environment)
        code = dict(variables).get(FETCHED_CODE)
        own = self.model_folders if folder is None else (str(folder), *([code] if code else []))
        return Confine(
            id=number,
            readable=[*own, *self.readable],
            temp=str(temp),
            restrictions=sorted(self.restrictions),
            landlock_version=self.kernel.landlock_version,
            guarded_pids=list(guarded_pids),
            environ=list(variables),
        )


def hardening_of(plan: Plan, run: Path) -> Hardening | None:
    """None where it is off; says what holds, and what this kernel lacks for it. Raises InvalidSetting."""
    config = plan.config
    if not config.hardened:
        return None
    hardening = Hardening(
        restrictions=restrictions_of(config),
        kernel=Kernel.running(),
        model_folders=(*map(str, config.model_root), str(run / "models")),
        readable=_readable(config, plan.environ),
        temp_root=run / "temp",
    )
    hardening.temp_root.mkdir(mode=0o700)
    if "files" in hardening.restrictions:
        _refuse_readable_secrets(hardening, _secrets(plan))
    logger.info("hardened: %s", ", ".join(sorted(hardening.restrictions)) or "nothing")
    for sentence in lacking(hardening.restrictions, hardening.kernel):
        logger.warning("hardened: %s", sentence)
    return hardening


def restrictions_of(config: Config) -> frozenset[str]:
    """The restrictions that are not switched off. Raises InvalidSetting."""
    restrictions = frozenset(RESTRICTIONS) - frozenset(config.hardened_without)
    if "workers" in restrictions and config.isolation == "shared":
        raise InvalidSetting(
            "--isolation shared lets models that bring code share a process, which --hardened forbids: leave one of "
            "them out, or add --hardened-without workers."
        )
    return restrictions


def lacking(restrictions: frozenset[str], kernel: Kernel) -> list[str]:
    """What is asked for and this kernel cannot do: a sentence for each."""
    found = []
    if "files" in restrictions and not kernel.landlock_version:
        found.append(
            f"this kernel ({kernel.release}) has no Landlock, or it is switched off: models can read what the server's "
            "user can. Linux 5.13 or newer with lsm=landlock has it."
        )
    if "signals" in restrictions and kernel.landlock_version < landlock.SCOPES_VERSION:
        found.append(
            f"this kernel's Landlock (version {kernel.landlock_version}, 6 is needed) does not keep signals in: models "
            "can end each other's processes, though not the server. Linux 6.12 or newer can."
        )
    asked = restrictions & {"signals", "network", "syscalls"}
    if asked and not kernel.has_seccomp:
        found.append(
            f"this kernel or machine ({platform.machine()}) takes no seccomp filter of ours: "
            f"{', '.join(sorted(asked))} are not restricted by one."
        )
    return found


def _readable(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The operator's own handler and code, and what --hardened-read names."""
    file, _, _ = config.handler.rpartition(":")
    handler = [str(Path(file).absolute().parent)] if file.endswith(".py") else []
    code = environ.get(_SUBMIT_DIRECTORY, "").removeprefix("file://")
    return (*handler, *([code] if code.startswith("/") else []), *map(str, config.hardened_read))


def _secrets(plan: Plan) -> dict[str, Path]:
    """What no model may read, by the setting that names it."""
    config = plan.config
    named = {
        "--auth-file": config.auth_file,
        "--tls-key": config.tls_key or config.tls_cert,
        "--token-key-file": config.token_key_file,
    }
    if plan.endpoints_environ is not None:
        named["--state-dir"] = state_folder(config, plan.endpoints_environ)
    return {setting: path for setting, path in named.items() if path is not None}


def _refuse_readable_secrets(hardening: Hardening, secrets: Mapping[str, Path]) -> None:
    open_to_models = (*SYSTEM_FOLDERS, *framework_folders(), *hardening.readable, *hardening.model_folders)
    for setting, secret in secrets.items():
        for folder in open_to_models:
            if Path(os.path.realpath(secret)).is_relative_to(os.path.realpath(folder)):
                raise InvalidSetting(
                    f"{setting} {secret} lies in {folder}, which hardened models may read: put it elsewhere."
                )
