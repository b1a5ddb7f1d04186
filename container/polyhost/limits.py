"""What the platform's and the toolkit's environment variables say of a server's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polyhost.config import Config
from polyhost.memory import cpu_limit

_DEFAULT_MAX_REQUEST_BYTES = 6_553_500
_DEFAULT_TIMEOUT_SECS = 60.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    max_request_bytes: int
    response_timeout_secs: float
    workers_per_model: int

    @classmethod
    def of(cls, config: Config, environ: Mapping[str, str]) -> Limits:
        workers = config.workers_per_model or (1 if is_multi_model(environ) else cpu_limit())
        return cls(
            max_request_bytes=_max_request_bytes(environ),
            response_timeout_secs=_response_timeout_secs(environ),
            workers_per_model=int(environ.get("MMS_DEFAULT_WORKERS_PER_MODEL", workers)),
        )


def is_multi_model(environ: Mapping[str, str]) -> bool:
    """What the platform says; else single-model exactly when there is a model in /opt/ml/model."""
    told = environ.get("SAGEMAKER_MULTI_MODEL", "").lower()
    if told:
        return told == "true"
    model = Path(environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "model"
    return not (model.is_dir() and any(model.iterdir()))


def _max_request_bytes(environ: Mapping[str, str]) -> int:
    if "SAGEMAKER_MAX_REQUEST_SIZE" in environ:
        return int(environ["SAGEMAKER_MAX_REQUEST_SIZE"])
    if "SAGEMAKER_MAX_PAYLOAD_IN_MB" in environ:
        return int(environ["SAGEMAKER_MAX_PAYLOAD_IN_MB"]) * 1024**2
    return _DEFAULT_MAX_REQUEST_BYTES


def _response_timeout_secs(environ: Mapping[str, str]) -> float:
    """MMS's order: seconds if they are given, else minutes, which the toolkit takes to be 60 unless told."""
    if "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS" in environ:
        return float(environ["SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"])
    if "SAGEMAKER_MODEL_SERVER_TIMEOUT" in environ:
        return float(environ["SAGEMAKER_MODEL_SERVER_TIMEOUT"]) * 60
    return _DEFAULT_TIMEOUT_SECS
