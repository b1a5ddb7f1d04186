"""
A server's limits, and the one place where MMS's properties for them are read.

They come as properties from both commands: `polyhost serve` makes them of the platform's variables as the
inference toolkit does, `multi-model-server` has them in a file that the toolkit wrote. An `MMS_` variable wins
over either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polyhost.config import Config
from polyhost.errors import InvalidSetting
from polyhost.memory import cpu_limit

# MMS's own.
_DEFAULT_MAX_REQUEST_BYTES = 6_553_500
_DEFAULT_MAX_RESPONSE_BYTES = 6_553_500
_DEFAULT_JOB_QUEUE_SIZE = 100
_DEFAULT_TIMEOUT_MINUTES = 120
# The toolkit's.
_TOOLKIT_TIMEOUT_MINUTES = "60"
# What SageMaker gives a model to answer InvokeEndpoint.
_ENDPOINTS_TIMEOUT_SECS = 60.0
# How many processes speak HTTP where nobody says it.
_MOST_FRONTS = 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_request_bytes: int
    # The body of one answer.
    max_response_bytes: int
    # For calls and loads of models that have no time of their own.
    response_timeout_secs: float
    # For models that a request loads, and for those that are loaded at the start; 0: registered, not loaded.
    workers_per_model: int
    startup_workers: int
    # How many requests may wait for each worker of a model.
    job_queue_size: int

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> Limits:
        """MMS's properties as it takes them: the timeout in minutes, unless it is given in seconds."""
        minutes = _number(properties, "default_response_timeout", _DEFAULT_TIMEOUT_MINUTES)
        workers = _number(properties, "default_workers_per_model", 0)
        return cls(
            max_request_bytes=_number(properties, "max_request_size", _DEFAULT_MAX_REQUEST_BYTES),
            max_response_bytes=_number(properties, "max_response_size", _DEFAULT_MAX_RESPONSE_BYTES),
            response_timeout_secs=_number(properties, "default_response_timeout_seconds", minutes * 60),
            workers_per_model=workers,
            startup_workers=workers or cpu_limit(),
            job_queue_size=_number(properties, "job_queue_size", _DEFAULT_JOB_QUEUE_SIZE),
        )

    @classmethod
    def of_platform(cls, config: Config, environ: Mapping[str, str]) -> Limits:
        """What the toolkit would have told MMS: the limits of `polyhost serve`."""
        properties = {
            "default_response_timeout": environ.get("SAGEMAKER_MODEL_SERVER_TIMEOUT", _TOOLKIT_TIMEOUT_MINUTES),
            "default_response_timeout_seconds": environ.get("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", ""),
            "default_workers_per_model": str(
                config.workers_per_model or (1 if is_multi_model(environ) else cpu_limit())
            ),
            "max_request_size": _max_request_size(environ),
        }
        return cls.of(with_overrides(properties, environ))


def endpoints_timeout_secs(environ: Mapping[str, str]) -> float | None:
    """How long a model may take to answer InvokeEndpoint; None where the operator has set the container's own limit."""
    names = ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "MMS_DEFAULT_RESPONSE_TIMEOUT")
    is_set = any(environ.get(name) or environ.get(f"{name}_SECONDS") for name in names)
    return None if is_set else _ENDPOINTS_TIMEOUT_SECS


def with_overrides(properties: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """A variable named `MMS_` and the property in capitals wins over the property. An empty variable does not count."""
    overrides = {name[4:].lower(): text for name, text in environ.items() if name.startswith("MMS_") and text}
    return {**properties, **overrides}


def is_multi_model(environ: Mapping[str, str]) -> bool:
    """What the platform says; else single-model exactly when there is a model in /opt/ml/model."""
    told = environ.get("SAGEMAKER_MULTI_MODEL", "").lower()
    if told:
        return told == "true"
    model = base_folder(environ) / "model"
    return not (model.is_dir() and any(model.iterdir()))


def base_folder(environ: Mapping[str, str]) -> Path:
    """Where the platform puts models: below it `models`, or `model` when there is one."""
    return Path(environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))


def _max_request_size(environ: Mapping[str, str]) -> str:
    """Bytes, "" where the platform says nothing."""
    if "SAGEMAKER_MAX_REQUEST_SIZE" in environ:
        return environ["SAGEMAKER_MAX_REQUEST_SIZE"]
    mib = environ.get("SAGEMAKER_MAX_PAYLOAD_IN_MB", "")
    return str(int(mib) * 1024**2) if mib.isdigit() else mib


def _number(properties: Mapping[str, str], name: str, default: int) -> int:
    text = properties.get(name) or str(default)
    if not text.strip().isdigit():
        raise InvalidSetting(f"{name} (or MMS_{name.upper()}): '{text}' is not a whole number of at least 0.")
    return int(text)


def front_count(config: Config, cpus: int) -> int:
    """
    How many processes are to speak HTTP, the server's own among them. Four cases:

    1. The operator has said it.
    2. MMS runs behind us: its own front, Java, is the limit.
    3. Models are confined: they are kept from the signals of processes that were there before them, not of new fronts.
    4. Half of the CPUs, because models need theirs too; on two of them there is nothing to share.
    """
    if config.fronts is not None:
        return config.fronts
    if config.engine == "mms" or config.hardened or cpus <= 2:
        return 1
    return min(_MOST_FRONTS, (cpus + 1) // 2)
