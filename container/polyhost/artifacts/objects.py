"""
Objects that are read and written on condition: how several servers keep one state in a bucket.

In the fetcher alone, and blocking. A store that does not know If-Match and If-None-Match answers as if they had not
been sent, or refuses: who relies on them finds that out first.
"""

from __future__ import annotations

import logging
from typing import Any

from polyhost.artifacts.stores import S3, split_source
from polyhost.artifacts.transfers import ArtifactChanged, ArtifactForbidden
from polyhost.service_errors import ArtifactMissing, EndpointError, StoreFailed

logger = logging.getLogger("polyhost.fetcher")

_MOST_BYTES = 64 * 1024**2
# 409: two writers at the same moment, of which the other one was taken.
_CHANGED = frozenset((409, 412))
_UNCHANGED = 304


class ObjectOf:
    """The object of a key below a source."""

    def __init__(self, s3: S3, source: str, key: str) -> None:
        self._s3 = s3
        self._bucket, prefix = split_source(source)
        self._key = prefix + key
        self._url = source + key

    def read(self, known: str) -> tuple[str, bytes]:
        """Its version and body; no body where it is still of the version `known`. Raises EndpointError."""
        condition = {"IfNoneMatch": _quoted(known)} if known else {}
        try:
            found = self._s3.look_up_client.get_object(Bucket=self._bucket, Key=self._key, **condition)
            if found["ContentLength"] > _MOST_BYTES:
                raise StoreFailed(f"{self._url} has more than {_MOST_BYTES} bytes.")
            return found["ETag"].strip('"'), found["Body"].read()
        except EndpointError:
            raise
        except Exception as error:
            if _status_of(error) == _UNCHANGED:
                return known, b""
            raise self._failure(error) from error

    def write(self, body: bytes, expected: str) -> str:
        """Its new version. `expected`: the one that it has now, "" where there is none yet. Raises EndpointError."""
        condition = {"IfMatch": _quoted(expected)} if expected else {"IfNoneMatch": "*"}
        try:
            written = self._s3.look_up_client.put_object(
                Bucket=self._bucket, Key=self._key, Body=body, ContentType="application/json", **condition
            )
        except Exception as error:
            raise self._failure(error) from error
        return str(written["ETag"].strip('"'))

    def _failure(self, error: Exception) -> EndpointError:
        status = _status_of(error)
        if status in _CHANGED:
            return ArtifactChanged(f"{self._url} has been changed.")
        if status == 404:
            return ArtifactMissing(f"{self._url} is not there.")
        if status == 403:
            return ArtifactForbidden(f"{self._url} may not be read and written by this server.")
        reason = f"status {status}" if status else type(error).__name__
        return StoreFailed(f"{self._url} cannot be read or written now ({reason}). Ask again later.")


def _quoted(version: str) -> str:
    return f'"{version}"'


def _status_of(error: Exception) -> int:
    """0 where the store did not answer."""
    response: Any = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
