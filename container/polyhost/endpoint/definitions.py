"""What an endpoint is made of, as the control plane stores it and a request finds it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container definition: where its archives are, what handles them, with which variables."""

    # Multi-model: the folder of archives, `s3://bucket/prefix/` or an absolute path, with a final `/`.
    # Single-model: the one archive.
    source: str
    is_multi_model: bool = True
    # "" is the server's own.
    handler: str = ""
    environ: tuple[tuple[str, str], ...] = ()
    # `REPOSITORY:TAG`, which may mean a Python environment; "" where no image is named.
    image: str = ""
    # Its name in a pipeline, as error texts use it.
    hostname: str = ""
    # ModelCacheSetting: otherwise a model is unloaded and deleted after each call.
    is_cached: bool = True
    # How long a model may take to answer; None for the server's own limit.
    response_timeout_secs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A share of an endpoint's traffic. More than one container is a pipeline."""

    name: str
    weight: float
    containers: tuple[Container, ...]
    # When it was deployed, seconds since 1970: the same containers deployed again are to be made anew.
    since: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Asynchronous:
    """
    Where asynchronous answers and failures go: urls as stores know them, with a final slash.

    `most_at_once`: how many calls of the endpoint are under way at once; None leaves that to the server.
    """

    output: str
    failure: str
    kms_key: str = ""
    most_at_once: int | None = None


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What is kept of requests and answers. `destination`: a bucket's prefix or a folder, with a final `/`."""

    destination: str
    percentage: int
    has_input: bool
    has_output: bool
    # Content types whose bodies are written as text.
    csv_types: tuple[str, ...] = ()
    json_types: tuple[str, ...] = ()
    kms_key: str = ""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """
    Ready to be invoked. `variants` have a total weight above 0, or one takes all.

    `shadows` are sent copies of requests; what they answer is sent to nobody. `asynchronous`: None where it takes no
    asynchronous calls.
    """

    name: str
    arn: str
    variants: tuple[Variant, ...]
    shadows: tuple[Variant, ...] = ()
    capture: Capture | None = None
    asynchronous: Asynchronous | None = None
