"""What to try: the lines that a server prints when it is ready, for somebody at a terminal."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from polyhost.artifacts.stores import FolderStore
from polyhost.config import Config

# Models of a folder are counted up to here.
_COUNTED = 1000
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here


@dataclass(frozen=True)
class Call:
    """A call to try. `body`: as curl takes it, `@FILE` is a file's content."""

    target: str
    about: str
    content_type: str
    body: str


def greeting(config: Config, calls: Sequence[Call] = ()) -> str:
    """
    How to call the models of `--models`, by curl and by boto3. "" where no person reads the log.

    `calls`: those to show; without them, one of the first model.
    """
    if config.log_format != "text" or config.models is None:
        return ""
    targets = _targets(config.models)
    calls = calls or [
        Call(target, "put a row of your model's features in the place of 1,2,3", "text/csv", "1,2,3")
        for target in targets[:1]
    ]
    lines = [_about_models(config.models, targets), *(_by_curl(config, call) for call in calls)]
    if calls:
        lines.append(_by_boto3(config, calls[0]))
    return "\n".join(("", *lines, f"The dashboard is at {_base(config)}/ and Ctrl-C ends the server.", ""))


def _targets(models: str) -> list[str]:
    """The first of a folder's. A bucket is not listed: it may be slow, and the calls are the same."""
    if models.startswith("s3://"):
        return ["MODEL.tar.gz"]
    return [key for page in FolderStore(models).pages(most=_COUNTED) for key in page]


def _about_models(models: str, targets: Sequence[str]) -> str:
    if not targets:
        return (
            f"There is no archive of a model in {models} yet. Put one there, such as model.tar.gz, and call it; or\n"
            f"pack a folder with model files: polyhost models add FOLDER --models {shlex.quote(models)}\n"
        )
    if models.startswith("s3://"):
        return (
            f"The models below {models} are served, and each is loaded when it is first called. List them with\n"
            f"polyhost models list --models {models}. Then try one:\n"
        )
    if len(targets) == 1:
        return f"One model is in {models}, and is loaded when it is first called. Try:\n"
    count = f"{_COUNTED} or more" if len(targets) == _COUNTED else str(len(targets))
    return f"{count} models are in {models}, and each is loaded when it is first called. Try:\n"


def _by_curl(config: Config, call: Call) -> str:
    option = "--data-binary" if call.body.startswith("@") else "-d"
    parts = [
        f"  # {call.about}",
        f"  curl -s {_base(config)}/invocations {_curl_signs(config)}\\",
        f"       -H {shlex.quote(f'X-Amzn-SageMaker-Target-Model: {call.target}')} \\",
        f"       -H 'Content-Type: {call.content_type}' {option} {shlex.quote(call.body)}",
    ]
    return "\n".join((*parts, ""))


def _curl_signs(config: Config) -> str:
    if config.auth == "off":
        return ""
    return "--aws-sigv4 aws:amz:us-east-1:sagemaker --user KEY_ID:SECRET "


def _by_boto3(config: Config, call: Call) -> str:
    key, secret = ("any", "any") if config.auth == "off" else ("KEY_ID", "SECRET")
    return f"""  # the first one by boto3
  {_python()} - <<'PYTHON'
import boto3
runtime = boto3.client("sagemaker-runtime", endpoint_url="{_base(config)}", region_name="us-east-1",
                       aws_access_key_id="{key}", aws_secret_access_key="{secret}")
answer = runtime.invoke_endpoint(EndpointName="{config.endpoint_name}", TargetModel={call.target!r},
                                 ContentType="{call.content_type}", Body={call.body!r})
print(answer["Body"].read().decode())
PYTHON
"""


def _python() -> str:
    """The one that has boto3."""
    return shlex.quote(min(sys.executable, os.path.relpath(sys.executable), key=len))


def _base(config: Config) -> str:
    host = _ANY_ADDRESS.get(config.host, config.host)
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if config.tls_cert else 'http'}://{name}:{config.port}"
