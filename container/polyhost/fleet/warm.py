"""
`polyhost fleet warm`: ask for each model once, through the router, so that it is loaded at its home and nowhere else.

A server's own `--preload` would load the same models at all servers.
"""

from __future__ import annotations

import enum
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhost_aws.session import Aws, CallFailed, translated

from polyhost.errors import DeployFailed, InvalidSetting
from polyhost.sizing.sample import Body, archives_of, read_bodies

_MODEL_ERROR = "ModelError"
# What Polyhost and Multi Model Server say of a model that could not be loaded.
_NOT_LOADED = "Unable to load model"
_AGAIN = ("ModelNotReadyException", "ServiceUnavailable", "ThrottlingException", "429", "503")
_AGAIN_SECS = 1.0
_SHOWN = 5


class Outcome(enum.Enum):
    LOADED = "loaded"
    AGAIN = "to be asked again"
    REFUSED = "not loaded"


@dataclass(frozen=True, kw_only=True)
class Options:
    """`at_once`: how many models are asked for at a time. `secs`: how long one may take."""

    url: str
    models: str = ""
    targets: Path | None = None
    endpoint_name: str = "polyhost"
    request: Path | None = None
    at_once: int = 8
    secs: float = 300.0


def outcome_of(code: str, message: str) -> Outcome:
    """
    What an error in an answer means for the model.

    A model that refuses the request (424) is loaded: it has read it.
    """
    if code == _MODEL_ERROR:
        return Outcome.REFUSED if _NOT_LOADED in message else Outcome.LOADED
    return Outcome.AGAIN if code in _AGAIN else Outcome.REFUSED


def warm(options: Options, say: Callable[[str], None]) -> str:
    """What came of it. Raises DeployFailed where a model was not loaded, InvalidSetting."""
    targets = _targets(options)
    body = read_bodies([options.request])[0] if options.request else Body(b"", "text/csv")
    caller = _Caller(Aws(endpoint_url=options.url), options, body)
    say(f"asking {options.url} for {len(targets):,} models")
    with ThreadPoolExecutor(options.at_once) as pool:
        reasons = dict(zip(targets, pool.map(caller.load, targets), strict=True))
    failed = {target: reason for target, reason in reasons.items() if reason}
    counted = Counter(not reason for reason in reasons.values())
    if failed:
        raise DeployFailed(f"{len(failed):,} of {len(targets):,} models were not loaded: {_examples(failed)}")
    return f"{counted[True]:,} models are loaded."


class _Caller:
    def __init__(self, aws: Aws, options: Options, body: Body) -> None:
        self._client = aws.client("sagemaker-runtime")  # made here: boto3 makes clients in one thread only
        self._options = options
        self._body = body

    def load(self, target: str) -> str:
        """Why it is not loaded, "" where it is."""
        deadline = time.monotonic() + self._options.secs
        while True:
            outcome, reason = self._ask(target)
            if outcome is Outcome.LOADED:
                return ""
            if outcome is Outcome.REFUSED or time.monotonic() > deadline:
                return reason
            time.sleep(_AGAIN_SECS)

    def _ask(self, target: str) -> tuple[Outcome, str]:
        call: dict[str, Any] = {
            "EndpointName": self._options.endpoint_name, "TargetModel": target, "Body": self._body.content,
            "ContentType": self._body.content_type,
        }  # fmt: skip
        try:
            with translated("sagemaker-runtime", "InvokeEndpoint"):
                self._client.invoke_endpoint(**call)["Body"].read()
        except CallFailed as error:
            return outcome_of(error.code, str(error)), str(error)
        return Outcome.LOADED, ""


def _targets(options: Options) -> list[str]:
    """Raises InvalidSetting."""
    if bool(options.models) == (options.targets is not None):
        raise InvalidSetting("--models and --targets: give one of them, so that it is known which models to load.")
    if options.targets is None:
        return sorted(archives_of(options.models))
    try:
        lines = options.targets.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"--targets: {options.targets} cannot be read as text ({error}).") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise InvalidSetting(f"--targets: {options.targets} names no model. Write one target a line.")
    return found


def _examples(failed: Mapping[str, str]) -> str:
    shown: Sequence[str] = [f"{target} ({reason})" for target, reason in list(failed.items())[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(failed) > _SHOWN else ".")
