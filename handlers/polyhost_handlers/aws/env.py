"""`sagemaker_containers.beta.framework.env`: where a script is served, read from the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from polyhost_handlers.aws.content_types import JSON


def __getattr__(name: str) -> str:
    """At AWS these are below /opt/ml. Here they are this model's own: a script runs in its archive's folder."""
    folders = {"model_dir": os.getcwd(), "code_dir": os.path.join(os.getcwd(), "code")}
    if name not in folders:
        raise AttributeError(f"module 'env' has no attribute '{name}'")
    return folders[name]


class ServingEnv(Mapping[str, Any]):
    """A snapshot; its names can be read as attributes or as keys."""

    def __init__(self) -> None:
        environ = os.environ
        program = environ.get("SAGEMAKER_PROGRAM")
        self.current_host = environ.get("CURRENT_HOST")
        self.default_accept = environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", JSON)
        self.framework_module = environ.get("SAGEMAKER_SERVING_MODULE")
        self.http_port = environ.get("SAGEMAKER_BIND_TO_PORT", "8080")
        self.log_level = int(environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL", logging.INFO))
        self.model_dir = os.getcwd()
        self.model_server_timeout = int(environ.get("SAGEMAKER_MODEL_SERVER_TIMEOUT", "60"))
        self.model_server_workers = int(environ.get("SAGEMAKER_MODEL_SERVER_WORKERS", num_cpus()))
        self.module_dir = environ.get("SAGEMAKER_SUBMIT_DIRECTORY", os.path.join(self.model_dir, "code"))
        self.module_name = program.removesuffix(".py") if program else program
        self.num_cpus = num_cpus()
        self.safe_port_range = environ.get("SAGEMAKER_SAFE_PORT_RANGE")
        self.use_nginx = False
        self.user_entry_point = program

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))


def num_cpus() -> int:
    return os.cpu_count() or 1
