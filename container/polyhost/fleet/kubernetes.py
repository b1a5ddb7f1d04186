"""The values of the Helm chart deploy/helm/polyhost for a fleet of this size."""

from __future__ import annotations

import json
from dataclasses import dataclass

from polyhost.errors import InvalidSetting

# The share of a disk for unpacked archives. File systems, and archives that are being fetched, take the rest.
_SHARE_FOR_ARCHIVES = 0.9
# At least so many more than at first.
_MORE = 3
_VALUES = """\
# {replicas} servers: helm upgrade --install polyhost deploy/helm/polyhost -f THIS_FILE
# What is not said here is as in the chart's own values.yaml.
replicas: {replicas}
models: {models}
region: {region}
endpointName: {endpoint_name}
state: {state}
image: {{repository: {repository}, tag: {tag}}}
resources: {{cpu: "{cpus}", memory: {memory_gib}Gi}}
disk: {{size: {disk_gib}Gi, budget: {budget_gib}GiB}}
router:
  kind: haproxy
  haproxy: {{replicas: {routers}, copyAt: {copy_at:g}}}
autoscaling:
  # Turn it on where KEDA and Prometheus are installed. HAProxy then knows maxReplicas servers from the start.
  enabled: {is_scaled}
  minReplicas: {least}
  maxReplicas: {most}
  invocationsPerMinute: {invocations:g}
"""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What an endpoint's policies ask for. `invocations`: a minute, for each server; 0 where that is not said."""

    least: int
    most: int
    invocations: float


@dataclass(frozen=True, kw_only=True)
class Options:
    replicas: int
    models: str
    region: str = ""
    state: str = ""
    routers: int = 2
    copy_at: float = 50.0
    endpoint_name: str = "polyhost"
    image: str = "polyhost:native"
    memory_gib: int = 8
    disk_gib: int = 50
    scaling: Scaling | None = None


def values(options: Options) -> str:
    """YAML. Raises InvalidSetting."""
    if not options.models.startswith("s3://") or not options.models.endswith("/"):
        raise InvalidSetting(
            "--models: servers of a fleet need one source for all. Name a prefix: s3://BUCKET/PREFIX/."
        )
    if options.state and not (options.state.startswith("s3://") and options.state.endswith("/")):
        raise InvalidSetting(
            "--state: the endpoints of a fleet are kept in a bucket. Name a prefix: s3://BUCKET/PREFIX/."
        )
    repository, colon, tag = options.image.rpartition(":")
    if not colon or "/" in tag:
        raise InvalidSetting(
            f"--image: {options.image!r} has no tag. Write NAME:TAG, so that all servers run the same."
        )
    scaling = options.scaling
    return _VALUES.format(
        replicas=options.replicas,
        models=_quoted(options.models),
        region=_quoted(options.region),
        state=_quoted(options.state),
        endpoint_name=_quoted(options.endpoint_name),
        repository=_quoted(repository),
        tag=_quoted(tag),
        cpus=max(1, options.memory_gib // 4),
        memory_gib=options.memory_gib,
        disk_gib=options.disk_gib,
        budget_gib=int(options.disk_gib * _SHARE_FOR_ARCHIVES),
        routers=options.routers,
        copy_at=options.copy_at,
        is_scaled="false" if scaling is None else "true",
        least=options.replicas if scaling is None else max(1, scaling.least),
        most=max(options.replicas + _MORE, 2 * options.replicas) if scaling is None else max(1, scaling.most),
        invocations=0 if scaling is None else scaling.invocations,
    )


def _quoted(text: str) -> str:
    """As YAML, which reads JSON's strings."""
    return json.dumps(text)
