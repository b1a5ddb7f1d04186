"""What an endpoint is made of, as the control plane stores it and a request finds it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Container:
    """
    One container definition: where its archives are, what handles them, with which variables.
    """

    # Multi-model: the folder of archives, `s3://bucket/prefix/` or an absolute path, with a final `/`.
    # Single-model: the one archive.
    source: str
    is_multi_model: bool = True
    # "" is the server's own.
    handler: str = ""
    environ: tuple[tuple[str, str], ...] = ()
    # Its name in a pipeline, as error texts use it.
    hostname: str = ""
    # ModelCacheSetting: otherwise a model is unloaded and deleted after each call.
    is_cached: bool = True


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A share of an endpoint's traffic. More than one container is a pipeline."""

    name: str
    weight: float
    containers: tuple[Container, ...]
    # When it was deployed, seconds since 1970: the same containers deployed again are to be made anew.
    since: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Ready to be invoked. `variants` have a total weight above 0, or one takes all."""

    name: str
    arn: str
    variants: tuple[Variant, ...]
