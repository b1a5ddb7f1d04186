"""
The state that an operator writes: a file of models, configurations and endpoints, read again when it changes.

Its words are boto3's, so that an entry of `Models` is what `create_model` takes. A file that cannot be used is said in
the log, and what was read before stays in force.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from polyhost.endpoint.arns import ENDPOINT
from polyhost.endpoint.hosting.deployments import FAILED, UPDATING
from polyhost.endpoint.hosting.operations import Operations
from polyhost.endpoint.hosting.outcomes import HostingError
from polyhost.endpoint.hosting.state import TAGS, Contents, InMemory, Resource
from polyhost.errors import StartFailed

logger = logging.getLogger("polyhost.endpoint")

T = TypeVar("T")

_POLL_SECS = 2.0
_MOST_BYTES = 16 * 1024**2
# In the order in which they need each other.
_SECTIONS = {"Models": "CreateModel", "EndpointConfigs": "CreateEndpointConfig", "Endpoints": "CreateEndpoint"}
# What an endpoint's document says of its deployment, and so not of what the file says.
_OF_DEPLOYMENTS = frozenset(("Status", "Before", "FailureReason"))


class BadFile(Exception):
    """What is wrong with it, and where."""


class FileState(InMemory):
    """A `State`. Raises StartFailed."""

    poll_secs = _POLL_SECS

    def __init__(self, file: Path, operations_on: Callable[[InMemory], Operations]) -> None:
        """`operations_on`: the control plane's, on another state."""
        super().__init__()
        self.refusal = (
            f"The endpoints of this server are those of the file {file} (--endpoints), and are not changed by calls: "
            "change the file, which is read again at once."
        )
        self._file = file
        self._operations_on = operations_on
        # Why it cannot be used as it is now.
        self._failure = ""
        try:
            self._version = _stamp(file)
            self.contents = self._read()
        except BadFile as error:
            raise StartFailed(f"--endpoints {file}: {error}.") from error

    @property
    def version(self) -> object:
        return self._version

    def transact(self, work: Callable[[], T]) -> T:
        self._read_if_changed()
        return super().transact(work)

    def _read_if_changed(self) -> None:
        try:
            stamp = _stamp(self._file)
            if stamp == self._version:
                return
            self._version = stamp
            self.contents = merged(self.contents, self._read())
        except BadFile as error:
            if (failure := str(error)) != self._failure:
                logger.error("--endpoints %s: %s. What was read before stays in force.", self._file, failure)  # noqa: TRY400
            self._failure = failure
        else:
            self._failure = ""
            logger.info("--endpoints %s was read again", self._file)

    def _read(self) -> Contents:
        """Raises BadFile."""
        document = _parsed(self._file)
        read = InMemory()
        operations = self._operations_on(read)
        for section, operation in _SECTIONS.items():
            for number, entry in enumerate(_entries(document, section)):
                try:
                    operations.perform(operation, entry)
                except HostingError as error:
                    raise BadFile(f"{section}[{number}]: {error.message.rstrip('.')}") from error
        return read.contents


def merged(old: Contents, new: Contents) -> Contents:
    """
    What a file says now, `new`, with what has become of it. Four cases of a resource:

    1. It was not there: as it is written.
    2. It is as it was, but for times: as it was, with its times and its status.
    3. It is an endpoint that had failed: as it is written, so that it is tried again.
    4. It has changed: as it is written; an endpoint serves as before until that is prepared.
    """
    contents = new.copy()
    for key, written in new.items():
        before = old.get(key)
        if key[0] == TAGS or before is None:
            continue  # 1
        has_failed = before.document.get("Status") == FAILED
        if _meaning(before) == _meaning(written) and not has_failed:
            contents[key] = before  # 2
        elif key[0] != ENDPOINT or has_failed:
            contents[key] = dataclasses.replace(written, created=before.created)  # 3, and 4 of the others
        else:
            last = before.document.get("Before", before.document)
            document = {**written.document, "Status": UPDATING, "Before": last}
            contents[key] = dataclasses.replace(written, created=before.created, document=document)  # 4
    return contents


def _meaning(resource: Resource) -> Any:
    """What its file says of a resource, without what came of it: equal where nothing is to be done."""
    if resource.kind != ENDPOINT:
        return resource.name, resource.document
    document = {name: value for name, value in resource.document.items() if name not in _OF_DEPLOYMENTS}
    for kind in ("Variants", "ShadowVariants"):
        document[kind] = [{**variant, "Since": 0.0} for variant in document.get(kind, ())]
    return resource.name, document


def _stamp(file: Path) -> tuple[int, ...]:
    """Raises BadFile."""
    try:
        status = os.stat(file)
    except OSError as error:
        raise BadFile(f"it cannot be read ({os.strerror(error.errno or 0)})") from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _parsed(file: Path) -> Mapping[str, Any]:
    """Raises BadFile."""
    import yaml  # only where there is such a file

    try:
        if file.stat().st_size > _MOST_BYTES:
            raise BadFile(f"it has more than {_MOST_BYTES} bytes")
        text = file.read_text()
        document = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise BadFile(f"it cannot be read ({os.strerror(error.errno or 0)})") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise BadFile(f"it is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not document.keys() <= _SECTIONS.keys():
        raise BadFile(f"it must have {', '.join(_SECTIONS)}, each a list, and nothing else")
    return document


def _entries(document: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    """Raises BadFile."""
    entries = document.get(section) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadFile(f"{section} must be a list of what {_SECTIONS[section]} takes")
    return entries
