"""What a transform job is, read from the request that made it. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyhost.endpoint.definitions import Container, Endpoint, Variant
from polyhost.endpoint.transform.filters import Filters, filters_of

# Statuses, as SageMaker has them.
IN_PROGRESS, COMPLETED, FAILED, STOPPING, STOPPED = "InProgress", "Completed", "Failed", "Stopping", "Stopped"
UNFINISHED = (IN_PROGRESS, STOPPING)

_MIB = 1024**2
_DEFAULT_PAYLOAD_MIB = 6
# SageMaker's limit, for one payload and for all that are under way at once.
MOST_PAYLOAD_MIB = 100
_DEFAULT_TIMEOUT_SECS = 600
_DEFAULT_RETRIES = 3
# The variable by which SageMaker tells a container that it answers a job.
_BATCH_VARIABLE = ("SAGEMAKER_BATCH", "true")
_VARIANT = "AllTraffic"


class BadJob(Exception):
    """The text is a sentence without its final dot; it says which field, and what to do."""


@dataclass(frozen=True, kw_only=True)
class TransformJob:
    """`source` and `output` are urls as stores know them, `s3://BUCKET/KEY` or a path; `output` ends with a slash."""

    name: str
    arn: str
    containers: tuple[Container, ...]
    source: str
    is_manifest: bool
    content_type: str
    is_gzip: bool
    split: str
    is_multi_record: bool
    max_payload_bytes: int
    max_concurrent: int
    output: str
    kms_key: str
    accept: str
    assembles_lines: bool
    filters: Filters | None
    retries: int
    is_stopping: bool = False

    @property
    def writes_lines(self) -> bool:
        """Where records were told apart by lines, so are their results."""
        return self.assembles_lines or self.split == "Line"

    @property
    def endpoint(self) -> Endpoint:
        """What the job's calls go to: nobody else can name it."""
        variant = Variant(name=_VARIANT, weight=1.0, containers=self.containers)
        return Endpoint(name=f"transform-job/{self.name}", arn=self.arn, variants=(variant,))


def job_of(
    name: str, arn: str, asked: Mapping[str, Any], containers: Sequence[Container], *, is_stopping: bool = False
) -> TransformJob:
    """`asked`: the request of CreateTransformJob, whose urls are as stores know them. Raises BadJob."""
    data, output, client = asked["TransformInput"], asked["TransformOutput"], asked.get("ModelClientConfig", {})
    source = data["DataSource"]["S3DataSource"]
    payload_mib, concurrent = _sizes_of(asked)
    timeout_secs = client.get("InvocationsTimeoutInSeconds", _DEFAULT_TIMEOUT_SECS)
    return TransformJob(
        name=name,
        arn=arn,
        containers=tuple(_in_batch(container, timeout_secs) for container in containers),
        source=source["S3Uri"],
        is_manifest=source["S3DataType"] == "ManifestFile",
        content_type=data.get("ContentType", ""),
        is_gzip=data.get("CompressionType") == "Gzip",
        split=data.get("SplitType", "None"),
        is_multi_record=asked.get("BatchStrategy", "MultiRecord") == "MultiRecord",
        max_payload_bytes=payload_mib * _MIB,
        max_concurrent=concurrent,
        output=output["S3OutputPath"].rstrip("/") + "/",
        kms_key=output.get("KmsKeyId", ""),
        accept=output.get("Accept", ""),
        assembles_lines=output.get("AssembleWith") == "Line",
        filters=_filters_of(asked),
        retries=client.get("InvocationsMaxRetries", _DEFAULT_RETRIES),
        is_stopping=is_stopping,
    )


def _sizes_of(asked: Mapping[str, Any]) -> tuple[int, int]:
    """The largest payload in MiB, and how many may be under way: 0 is the default of both, as it is at SageMaker."""
    concurrent = asked.get("MaxConcurrentTransforms") or 1
    payload = asked.get("MaxPayloadInMB", min(_DEFAULT_PAYLOAD_MIB, max(1, MOST_PAYLOAD_MIB // concurrent)))
    if not payload:
        payload = max(1, MOST_PAYLOAD_MIB // concurrent)
    elif concurrent * payload > MOST_PAYLOAD_MIB and "MaxPayloadInMB" in asked:
        raise BadJob(
            f"MaxConcurrentTransforms * MaxPayloadInMB is {concurrent * payload}, {MOST_PAYLOAD_MIB} are allowed: "
            "lower one of them"
        )
    return payload, concurrent


def _filters_of(asked: Mapping[str, Any]) -> Filters | None:
    """None where records go in and come out as they are."""
    processing = asked.get("DataProcessing", {})
    input_filter, output_filter = processing.get("InputFilter", "$"), processing.get("OutputFilter", "$")
    joins = processing.get("JoinSource", "None") == "Input"
    if not joins and (input_filter, output_filter) == ("$", "$"):
        return None
    if asked["TransformInput"].get("SplitType", "None") not in ("None", "Line"):
        raise BadJob("DataProcessing needs records of text: use SplitType Line or None")
    try:
        return filters_of(
            input_filter, output_filter, asked["TransformInput"].get("ContentType", ""),
            asked["TransformOutput"].get("Accept", ""), joins=joins,
        )  # fmt: skip
    except ValueError as error:
        raise BadJob(str(error)) from error


def _in_batch(container: Container, timeout_secs: float) -> Container:
    environ = tuple(sorted({**dict(container.environ), _BATCH_VARIABLE[0]: _BATCH_VARIABLE[1]}.items()))
    return dataclasses.replace(container, environ=environ, response_timeout_secs=float(timeout_secs))
