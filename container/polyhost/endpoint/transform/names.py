"""Which objects a transform job reads, and what it calls what comes of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

_SUFFIX = ".out"


class BadManifest(Exception):
    """A sentence without its final dot."""


class Object(NamedTuple):
    """`source` is a bucket or a folder with a final slash, `key` the rest; `name` is relative to the job's prefix."""

    source: str
    key: str
    name: str

    @property
    def url(self) -> str:
        return self.source + self.key

    @property
    def output(self) -> str:
        return self.name + _SUFFIX


def split_url(url: str) -> tuple[str, str]:
    """The source that is listed, and the prefix of the keys in it: a bucket, or the folder that a path names."""
    if url.startswith("s3://"):
        bucket, _, prefix = url[len("s3://") :].partition("/")
        return f"s3://{bucket}/", prefix
    folder, slash, name = url.rpartition("/")
    return folder + slash, name


def inputs_below(url: str, keys: Iterable[str], output: str) -> list[Object]:
    """The objects of a prefix, by their keys. What a job wrote below `output` before is none of its inputs."""
    source, prefix = split_url(url)
    found = (Object(source, key, _relative(key, prefix)) for key in sorted(keys) if not key.endswith("/"))
    return [one for one in found if not (one.url.startswith(output) and one.key.endswith(_SUFFIX))]


def _relative(key: str, prefix: str) -> str:
    """`data/a.csv` is `a.csv` below `data`, below `data/` and below `data/a`; as SageMaker's SDK has it."""
    if key != prefix and (prefix.endswith("/") or key[len(prefix) :].startswith("/")):
        return key[len(prefix) :].lstrip("/")
    return key[prefix.rfind("/") + 1 :]


def inputs_of_manifest(content: bytes) -> list[Object]:
    """A manifest is a list: `{"prefix": "s3://bucket/some/"}`, then the names below that. Raises BadManifest."""
    try:
        document = json.loads(content)
        prefix, *names = document
        url = prefix["prefix"]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise BadManifest('it is not a list of JSON that begins with {"prefix": "s3://…"}') from error
    if not isinstance(url, str) or not all(isinstance(name, str) and name for name in names):
        raise BadManifest("its prefix and its names must be text")
    source, start = split_url(url)
    if not source.startswith("s3://"):
        raise BadManifest("its prefix must begin with s3://")
    return [Object(source, start + name, name.lstrip("/")) for name in names]
