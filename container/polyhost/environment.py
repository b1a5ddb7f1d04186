"""What the endpoint half's configuration means for the rest of the server: variables and folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from polyhost_handlers.environments.evidence import ENVIRONMENT, OLD_ENVIRONMENT

from polyhost.config import Config

# Of the server's own environment, what a process needs to run at all: where programs, libraries and certificates are,
# the language, the threads of numeric libraries. Values of these names are no secrets. Proxies are not among them,
# because their urls hold passwords.
_SYSTEM = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|HOSTNAME|VIRTUAL_ENV|LANG|LANGUAGE|LC_[A-Z]+|TZ|TZDIR|TMPDIR|TEMP|TMP"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON[A-Z]+|GLIBC_TUNABLES|MALLOC_[A-Z_]+"
    r"|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    r"|(OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|NUMEXPR|VECLIB|MXNET|ORT)_[A-Z0-9_]+"
    r"|CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|NVIDIA_DRIVER_CAPABILITIES|AWS_REGION|AWS_DEFAULT_REGION"
)
# Settings of handlers, which a container on SageMaker has too.
_LIBSVM_FIRST_INDEX = "POLYHOST_LIBSVM_FIRST_INDEX"
_OF_HANDLERS = re.compile(rf"SAGEMAKER_\w+|MMS_DECODE_INPUT_REQUEST|{_LIBSVM_FIRST_INDEX}|POLYHOST_[A-Z0-9_]+_PYTHON")
# Where MMS itself runs behind us, its Java and its properties, which its workers see too.
_OF_MMS = re.compile(r"JAVA_HOME|JAVA_TOOL_OPTIONS|MMS_\w+")
# Where environments are kept.
ENVIRONMENTS = "POLYHOST_ENVIRONMENTS"
# Where a container's own code was fetched to: set by the server alone.
FETCHED_CODE = "POLYHOST_FETCHED_CODE"
# What a container definition may set of ours.
_OF_CONTAINERS = ("POLYHOST_HANDLER", ENVIRONMENT, OLD_ENVIRONMENT, _LIBSVM_FIRST_INDEX)


def container_environ(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """What models may see of the server's environment behind an endpoint: none of its settings and secrets."""
    patterns = [_SYSTEM, _OF_HANDLERS, *([_OF_MMS] if config.engine == "mms" else [])]
    told = {
        name: value
        for name, value in environ.items()
        if name in config.pass_env or any(pattern.fullmatch(name) for pattern in patterns)
    }
    return {**told, "SAGEMAKER_MULTI_MODEL": "true"}


def environments_told(config: Config) -> dict[str, str]:
    """What the server's settings say of Python environments, for whoever chooses one."""
    told = {ENVIRONMENT: config.environment, ENVIRONMENTS: config.environments_folder}
    return {name: str(value) for name, value in told.items() if value is not None}


def system_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """What a process of ours needs that runs no model and has no settings of its own."""
    return {name: value for name, value in environ.items() if _SYSTEM.fullmatch(name)}


def definition_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """
    What counts of a container definition's Environment: all but the settings of the server.

    A caller who may create models must not choose, say, the Python that runs them.
    """
    counts = {
        name: value for name, value in environ.items() if not name.startswith("POLYHOST_") or name in _OF_CONTAINERS
    }
    if old := counts.pop(OLD_ENVIRONMENT, ""):
        counts.setdefault(ENVIRONMENT, old)
    return counts


def state_folder(config: Config, environ: Mapping[str, str]) -> Path:
    if config.state_dir is not None:
        return config.state_dir.absolute()
    base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or "/").joinpath(".local", "state")
    return Path(base, "polyhost", config.endpoint_name)


def cache_folder(config: Config, environ: Mapping[str, str]) -> Path:
    return config.cache_dir.absolute() if config.cache_dir else state_folder(config, environ) / "cache"
