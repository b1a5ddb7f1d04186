"""Archives of models: found in buckets and folders, fetched, unpacked, kept on disk."""

from polyhost.artifacts.artifacts import Artifacts, ObjectStore, PayloadStore
from polyhost.artifacts.catalogue import Listing
from polyhost.artifacts.entries import Artifact
from polyhost.artifacts.stores import check_key, split_archive_url
from polyhost.artifacts.transfers import ArtifactForbidden, Listed, Payload

__all__ = [
    "Artifact",
    "ArtifactForbidden",
    "Artifacts",
    "Listed",
    "Listing",
    "ObjectStore",
    "Payload",
    "PayloadStore",
    "check_key",
    "split_archive_url",
]
