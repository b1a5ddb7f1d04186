"""
The state that several servers share: one object of a bucket, written by compare and swap.

A server writes only over the version that it has read (`If-Match`), so that of two that write at once one is refused,
reads again, and decides again. The object is made once and never deleted here: where it has gone, that is a fault and
no empty state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from polyhost.artifacts.transfers import ArtifactChanged, Content
from polyhost.endpoint.hosting.state import TAGS, Contents, InMemory, Resource, StateFailed
from polyhost.errors import StartFailed
from polyhost.service_errors import EndpointError

T = TypeVar("T")

FILE, PROBE = "endpoints.json", "conditional-writes"
_FORMAT = 1
_POLL_SECS = 2.0
# How long one change is tried while others write: each try takes some 50 ms.
_PATIENCE_SECS = 20.0
_FIRST_PAUSE_SECS, _LONGEST_PAUSE_SECS = 0.02, 0.5
# A version that no object has, because no checksum is all zeros.
_NO_VERSION = "0" * 32
_WORDS = b"Polyhost tries here at its start whether this store knows conditional writes.\n"


class Object(Protocol):
    """As StoredObject."""

    @property
    def url(self) -> str: ...

    def read(self, known: str) -> Content | None: ...

    def write(self, body: bytes, expected: str) -> str: ...


class BucketState(InMemory):
    """A `State`. Raises StartFailed."""

    poll_secs = _POLL_SECS

    def __init__(self, stored: Object, probe: Object) -> None:
        super().__init__()
        self._stored = stored
        # The last write that is in the object, by this server or another.
        self._write_id = ""
        self._version = ""
        try:
            _require_conditional_writes(probe)
            self._make()
            self._pull()
        except (EndpointError, StateFailed) as error:
            raise StartFailed(f"--state: the shared state cannot be used: {error}") from error

    @property
    def version(self) -> str:
        return self._version

    def transact(self, work: Callable[[], T]) -> T:
        deadline = time.monotonic() + _PATIENCE_SECS
        pause_secs = _FIRST_PAUSE_SECS
        while time.monotonic() < deadline:
            self._pull()
            before = self.contents.copy()
            result = super().transact(work)
            if self.contents == before or self._push(before):
                return result
            time.sleep(random.uniform(0, pause_secs))  # noqa: S311 - no secret
            pause_secs = min(_LONGEST_PAUSE_SECS, 2 * pause_secs)
        raise StateFailed(f"others change {self._stored.url} all the time")

    def _make(self) -> None:
        with contextlib.suppress(ArtifactChanged):  # it is there
            self._stored.write(_written(Contents(), ""), "")

    def _pull(self) -> None:
        """Raises StateFailed; what was read before stays."""
        try:
            content = self._stored.read(self._version)
        except EndpointError as error:
            raise StateFailed(error.message) from error
        if content is not None:
            self.contents, self._write_id = _read(content.body, self._stored.url)
            self._version = content.version

    def _push(self, before: Contents) -> bool:
        """Whether it was written: not where another server was first."""
        write_id, wanted = uuid.uuid4().hex, self.contents
        self.contents = before
        try:
            version = self._stored.write(_written(wanted, write_id), self._version)
        except ArtifactChanged:
            self._pull()  # a write whose answer was lost may have been sent twice
            return self._write_id == write_id
        except EndpointError as error:
            raise StateFailed(error.message) from error
        self.contents, self._write_id, self._version = wanted, write_id, version
        return True


def _require_conditional_writes(probe: Object) -> None:
    """Raises StartFailed, EndpointError."""
    for expected, condition in (("", ""), ("", "If-None-Match"), (_NO_VERSION, "If-Match")):
        try:
            probe.write(_WORDS, expected)
        except ArtifactChanged:
            continue
        if condition:
            raise StartFailed(
                f"--state: the store of {probe.url} does not know {condition}: servers would overwrite what others "
                "have written. Use one with conditional writes, as S3 has them, or --endpoints."
            )


def _written(contents: Contents, write_id: str) -> bytes:
    resources = [dataclasses.asdict(value) for (kind, _), value in contents.items() if kind != TAGS]
    tags = {arn: value for (kind, arn), value in contents.items() if kind == TAGS}
    return json.dumps({"Format": _FORMAT, "Write": write_id, "Resources": resources, "Tags": tags}).encode()


def _read(body: bytes, url: str) -> tuple[Contents, str]:
    """Raises StateFailed."""
    try:
        document = json.loads(body)
        if document["Format"] > _FORMAT:
            raise StateFailed(f"{url} was written by a newer Polyhost")
        contents = Contents()
        for given in document["Resources"]:
            resource = Resource(**given)
            contents[resource.kind, resource.name.lower()] = resource
        tags: dict[str, Any] = document["Tags"]
        contents.update({(TAGS, arn): value for arn, value in tags.items()})
        return contents, str(document["Write"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateFailed(f"{url} is not readable as Polyhost's state ({type(error).__name__})") from error
