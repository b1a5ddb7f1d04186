"""A deployment as it is asked for, and how its parts are written on the command line. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyhost.errors import InvalidSetting


@dataclass(frozen=True, kw_only=True)
class Variant:
    name: str
    weight: float
    # The prefix, `s3://bucket/prefix/`; for a server at home also a folder of its machine.
    models: str
    image: str
    instance_type: str
    instance_count: int


@dataclass(frozen=True)
class Autoscale:
    least: int
    most: int
    # Invocations of an instance in a minute.
    target: float


@dataclass(frozen=True, kw_only=True)
class Deployment:
    name: str
    role: str
    variants: tuple[Variant, ...]
    environ: tuple[tuple[str, str], ...] = ()
    is_cached: bool = True
    autoscale: Autoscale | None = None


@dataclass(frozen=True)
class First:
    """The first invocation, which loads a model."""

    target: str
    content_type: str
    body: bytes


def parse_autoscale(text: str) -> Autoscale:
    """`MIN:MAX:TARGET`. Raises InvalidSetting."""
    try:
        least, most, target = text.split(":")
        autoscale = Autoscale(int(least), int(most), float(target))
    except ValueError:
        raise InvalidSetting(
            f"--autoscale: '{text}' is not MIN:MAX:TARGET: write for example 2:8:600, from 2 to 8 instances with about "
            "600 invocations a minute each."
        ) from None
    if not 1 <= autoscale.least <= autoscale.most or not 0 < autoscale.target < float("inf"):
        raise InvalidSetting(f"--autoscale: '{text}': MIN must be 1 or more, MAX no less, and TARGET above 0.")
    return autoscale


def parse_variant(text: str, default: Variant) -> Variant:
    """`NAME=WEIGHT`, then `,SETTING=VALUE` for what is other than in `default`. Raises InvalidSetting."""
    first, *others = text.split(",")
    name, _, weight = first.partition("=")
    given: dict[str, Any] = {"name": name, "weight": _number("weight", weight, float, text)}
    for other in others:
        setting, _, value = other.partition("=")
        if setting not in ("models", "image", "instance-type", "instance-count") or not value:
            raise InvalidSetting(
                f"--variant {text}: '{other}' is none of models=, image=, instance-type= and instance-count=."
            )
        given[setting.replace("-", "_")] = value
    if "instance_count" in given:
        given["instance_count"] = _number("instance-count", given["instance_count"], int, text, least=1)
    return Variant(**{**vars(default), **given})


def _number(what: str, text: str, kind: type[int | float], whole: str, least: int = 0) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = -1
    if not least <= number < float("inf"):
        raise InvalidSetting(
            f"--variant {whole}: {what} must be a number from {least} on: write NAME=WEIGHT, for example canary=0.1."
        )
    return number


def parse_environ(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE`, the last one of a name. Raises InvalidSetting."""
    environ = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InvalidSetting(f"--env: '{name}' is not NAME=VALUE.")
        environ[name] = value
    return tuple(sorted(environ.items()))
