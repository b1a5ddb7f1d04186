"""
`polyhost fleet refresh`: have every server look at its archives now.

A router sends a request to one server, and this one is for all of them: they are asked directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from polyhost_aws.session import Aws

from polyhost.errors import DeployFailed
from polyhost.fleet.layout import Server

_AT_ONCE = 16


def refresh(servers: Sequence[Server], say: Callable[[str], None], *, is_https: bool = False) -> str:
    """
    What came of it; `say` is told of each server that has not done it.

    Signed where there are AWS credentials. Raises DeployFailed where a server did not do it, InvalidSetting.
    """
    scheme = "https" if is_https else "http"
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        failures = [*pool.map(lambda server: _failure(f"{scheme}://{server.address}"), servers)]
    failed = [(server, failure) for server, failure in zip(servers, failures, strict=True) if failure]
    for server, failure in failed:
        say(f"{server.address}: {failure}")
    if failed:
        raise DeployFailed(
            f"{len(failed)} of {len(servers)} servers have not looked at their archives: ask again when they answer."
        )
    return f"{len(servers)} of {len(servers)} servers have looked at their archives."


def _failure(url: str) -> str:
    """Why the server has not done it; empty where it has."""
    from botocore.exceptions import BotoCoreError

    try:
        status, text = Aws(endpoint_url=url).post("/refresh")
    except BotoCoreError as error:
        return f"it was not reached ({error})"
    return "" if status == HTTPStatus.OK else f"it answered {status}: {text.strip()}"
