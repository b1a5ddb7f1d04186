"""Archives of models: found in buckets and folders, fetched, unpacked, kept on disk."""

from polyhost.endpoint.artifacts.artifacts import Artifacts
from polyhost.endpoint.artifacts.disk import Artifact
from polyhost.endpoint.artifacts.stores import check_key, split_archive_url
from polyhost.endpoint.artifacts.transfers import ArtifactForbidden, Listed

__all__ = ["Artifact", "ArtifactForbidden", "Artifacts", "Listed", "check_key", "split_archive_url"]
