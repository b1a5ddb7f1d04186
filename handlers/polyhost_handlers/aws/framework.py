"""`sagemaker_containers.beta.framework`: its modules for serving, and names for those of training."""

from __future__ import annotations

from polyhost_handlers.aws import ForTraining, content_types, encoders, env, errors, transformer, worker

__all__ = ["content_types", "encoders", "env", "errors", "transformer", "worker"]

_NAME = "sagemaker_containers.beta.framework"
_FOR_TRAINING = (
    "entry_point",
    "files",
    "functions",
    "logging",
    "mapping",
    "modules",
    "mpi",
    "params",
    "process",
    "runner",
    "server",
    "trainer",
    "training_env",
)


def __getattr__(name: str) -> object:
    if name == "training_env":  # a function
        return getattr(ForTraining(_NAME), name)
    if name in _FOR_TRAINING:
        return ForTraining(f"{_NAME}.{name}")
    raise AttributeError(f"module '{_NAME}' has no attribute '{name}'")
