"""What the endpoint half's configuration means for the rest of the server: variables and folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from polyhost.config import Config

_KEPT_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")


def container_environ(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """What models may see behind an endpoint: no credentials, unless they are told to be passed."""
    kept = (*_KEPT_VARIABLES, *config.pass_env)
    told = {name: value for name, value in environ.items() if not name.startswith("AWS_") or name in kept}
    return {**told, "SAGEMAKER_MULTI_MODEL": "true"}


def state_folder(config: Config, environ: Mapping[str, str]) -> Path:
    if config.state_dir is not None:
        return config.state_dir.absolute()
    base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or "/").joinpath(".local", "state")
    return Path(base, "polyhost", config.endpoint_name)


def cache_folder(config: Config, environ: Mapping[str, str]) -> Path:
    return config.cache_dir.absolute() if config.cache_dir else state_folder(config, environ) / "cache"
