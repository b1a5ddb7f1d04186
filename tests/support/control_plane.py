"""
The control plane alone behind real HTTP, in a process of its own that can be killed.

As a command: `python -m support.control_plane PORT STATE_DIR ALLOWED_FOLDER [OWN] [CHECK]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config as ClientConfig
from polyhost.api import hosting as protocol
from polyhost.api.http import Reply, Request
from polyhost.api.listener import Listener
from polyhost.api.tasks import AnsweringTasks
from polyhost.endpoint.arns import Arns
from polyhost.endpoint.definitions import Container, Endpoint, Variant
from polyhost.endpoint.hosting import Hosting
from polyhost.endpoint.hosting.hosting import Plane
from polyhost.endpoint.hosting.sqlite_state import SqliteState
from polyhost.errors import PolyhostError
from polyhost.service_errors import AccessDenied

from support.server import Process, free_port

ACCOUNT = "123456789012"
REGION = "us-east-1"
OWN_NAME = "polyhost"
# Nobody may do this to that.
FORBIDDEN = ("sagemaker:DeleteEndpoint", f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/kept")


class App:
    max_request_bytes = 6 * 1024**2

    def __init__(self, hosting: Hosting) -> None:
        self._hosting = hosting
        self._served = 0
        self._tasks = AnsweringTasks()

    def answer(self, request: Request, done: Callable[[Reply], None]) -> Callable[[], None]:
        self._served += 1
        return self._tasks.run(protocol.answer(self._hosting, request, f"request-{self._served}", authorize), done)

    def stop_soon(self) -> None:
        self._tasks.stop_soon()

    async def stop(self) -> None:
        await self._tasks.stop()

    def too_large(self, request: Request, done: Callable[[Reply], None]) -> None:
        done(Reply(b"", 413, (), closes=True))


def authorize(action: str, resource: str) -> None:
    if (action, resource) == FORBIDDEN:
        raise AccessDenied(f"User: anonymous is not authorized to perform: {action} on resource: {resource}")


def own_endpoint() -> Endpoint:
    container = Container(source="s3://own/models/")
    return Endpoint(
        name=OWN_NAME,
        arn=f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{OWN_NAME}",
        variants=(Variant(name="AllTraffic", weight=1, containers=(container,)),),
    )


def one_source(containers: Sequence[Container]) -> str | None:
    """As with the engine that runs one container definition."""
    if len({(container.source, container.environ) for container in containers}) > 1:
        return "The engine mms runs one container definition: use --engine native for several."
    return None


async def serve(port: int, state_dir: Path, allowed: Path, words: Sequence[str]) -> None:
    hosting = Hosting(
        lambda: SqliteState(state_dir),
        Plane(
            arns=Arns(ACCOUNT, REGION),
            own=own_endpoint() if "own" in words else None,
            allowed_folders=(allowed,),
            check=one_source if "check" in words else lambda _: None,
        ),
    )
    await hosting.start()
    listener = Listener(App(hosting), drain_secs=10)
    await listener.start("127.0.0.1", port)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, listener.stop)
    sys.stdout.write(f"ready, serving {sorted(endpoint.name for endpoint in hosting.endpoints())}\n")
    sys.stdout.flush()
    try:
        await listener.serve()
    finally:
        await hosting.stop()


class ControlPlane:
    """That command, started, and a client of it."""

    def __init__(self, state_dir: Path, allowed: Path, *words: str) -> None:
        port = free_port()
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = Process(
            [sys.executable, "-m", "support.control_plane", str(port), str(state_dir), str(allowed), *words], environ
        )
        self.url = f"http://127.0.0.1:{port}"

    def wait(self) -> ControlPlane:
        self.process.wait_for_line("^ready")
        return self

    def stop(self) -> None:
        self.process.send(signal.SIGINT)
        self.process.wait()
        self.process.kill_tree()

    def kill(self) -> None:
        self.process.kill_tree()


@contextlib.contextmanager
def control_plane_in(state_dir: Path, allowed: Path, *words: str) -> Iterator[ControlPlane]:
    plane = ControlPlane(state_dir, allowed, *words)
    try:
        yield plane.wait()
    finally:
        plane.stop()


def client_of(url: str) -> Any:
    """boto3's, as a user makes it; without waiting for what fails."""
    return boto3.client(
        "sagemaker",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=ClientConfig(retries={"max_attempts": 1}),
    )


if __name__ == "__main__":
    port, state_dir, allowed, *words = sys.argv[1:]
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(int(port), Path(state_dir), Path(allowed), words))
    except PolyhostError as error:
        sys.exit(f"error: {error}")
