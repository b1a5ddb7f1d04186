"""
Transform jobs in the control plane: made, described, listed, stopped, and what came of them.

Synchronous; it belongs to the thread that owns the state. A job keeps what its model was when the job was made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyhost.endpoint.arns import MODEL, TRANSFORM
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.hosting.containers import containers_of, located
from polyhost.endpoint.hosting.deployments import container_of
from polyhost.endpoint.hosting.outcomes import HostingError, Outcome, invalid
from polyhost.endpoint.hosting.pages import Row, page_outcome
from polyhost.endpoint.hosting.records import Records, now
from polyhost.endpoint.hosting.served import Served
from polyhost.endpoint.hosting.state import Resource, State
from polyhost.endpoint.transform.definitions import (
    FAILED,
    IN_PROGRESS,
    STOPPING,
    UNFINISHED,
    BadJob,
    TransformJob,
    job_of,
)

Parameters = Mapping[str, Any]

# How many jobs may be unfinished, and how many are remembered. The oldest finished ones are forgotten first.
_MOST_UNFINISHED = 100
_MOST_KEPT = 1000
_MOST_REASON_CHARS = 1024


class TransformOperations:
    """As Operations."""

    def __init__(self, state: State, records: Records, served: Served, *, allowed_folders: Sequence[Path]) -> None:
        self._state = state
        self._records = records
        self._served = served
        self._allowed_folders = allowed_folders
        self.methods: Mapping[str, Callable[[Parameters], Outcome]] = {
            "CreateTransformJob": self._create,
            "DescribeTransformJob": self._describe,
            "ListTransformJobs": self._list,
            "StopTransformJob": self._stop,
        }

    def unfinished(self) -> list[TransformJob]:
        """The oldest first. Jobs that another server has made are not among them."""
        if self._state.poll_secs:
            return []
        jobs = (job for job in self._records.all(TRANSFORM) if job.document["Status"] in UNFINISHED)
        return [self._job(job) for job in sorted(jobs, key=lambda job: job.created)]

    def begun(self, name: str) -> None:
        """It is at work now; once more, where the server has ended meanwhile."""
        self._state.transact(lambda: self._keep(self._require(name), Started=now()))

    def ended(self, name: str, status: str, reason: str) -> None:
        failure = {"FailureReason": reason[:_MOST_REASON_CHARS]} if status == FAILED else {}
        self._state.transact(lambda: self._keep(self._require(name), Status=status, Ended=now(), **failure))

    # Operations

    def _create(self, asked: Parameters) -> Outcome:
        name = asked["TransformJobName"]
        if self._state.poll_secs:
            raise invalid(
                "Servers that share their state have no transform jobs: make them at a server that has its own "
                "--state-dir."
            )
        self._require_room(name)
        if asked.get("DataCaptureConfig"):
            raise invalid("DataCaptureConfig is not supported: what a job reads and writes is kept anyway.")
        containers = self._containers(asked)
        request = self._located(asked)
        document = {
            "Asked": request,
            "Containers": [dataclasses.asdict(container) for container in containers],
            "Status": IN_PROGRESS,
        }
        resource = Resource(TRANSFORM, name, now(), now(), document)
        try:
            job = self._job(resource)
        except BadJob as error:
            raise invalid(f"{error}.") from error
        self._state.put(resource)
        self._records.add_tags(job.arn, {}, asked.get("Tags", ()))
        return Outcome({"TransformJobArn": job.arn}, job=job)

    def _describe(self, asked: Parameters) -> Outcome:
        job = self._require(asked["TransformJobName"])
        return Outcome({**self._records.described(job, "TransformJobArn"), **job.document["Asked"], **_progress(job)})

    def _list(self, asked: Parameters) -> Outcome:
        return page_outcome("TransformJobSummaries", [self._row(job) for job in self._records.all(TRANSFORM)], asked)

    def _stop(self, asked: Parameters) -> Outcome:
        job = self._require(asked["TransformJobName"])
        status = job.document["Status"]
        if status not in UNFINISHED:
            raise invalid(
                f"The request was rejected because the transform job {job.name} is {status}: only a job that is "
                f"{IN_PROGRESS} can be stopped."
            )
        self._keep(job, Status=STOPPING)
        return Outcome({}, stopped=job.name)

    # Parts

    def _require(self, name: str) -> Resource:
        job = self._state.get(TRANSFORM, name)
        if job is None:
            raise invalid(f"Could not find requested job with name: {name}.")
        return job

    def _require_room(self, name: str) -> None:
        """For one more job; the oldest that are over are forgotten. Raises HostingError."""
        arn = self._records.arn_of(TRANSFORM, name)
        if self._state.get(TRANSFORM, name):
            raise HostingError(
                "ResourceInUse", f"Job name must be unique, and a job with this name already exists ({arn})."
            )
        jobs = sorted(self._records.all(TRANSFORM), key=lambda job: job.created)
        over = [job for job in jobs if job.document["Status"] not in UNFINISHED]
        if len(jobs) - len(over) >= _MOST_UNFINISHED:
            raise HostingError(
                "ResourceLimitExceeded",
                f"{_MOST_UNFINISHED} transform jobs are waiting or at work: make this one when one of them is over.",
            )
        for job in over[: max(0, len(jobs) + 1 - _MOST_KEPT)]:
            self._records.delete(TRANSFORM, job.name)

    def _containers(self, asked: Parameters) -> Sequence[Container]:
        """The containers of the job's model as it is now, with the job's variables. Raises HostingError, Unusable."""
        model = self._records.require(MODEL, asked["ModelName"])
        containers = containers_of(
            _with_environment(model.document, asked.get("Environment", {})), self._allowed_folders
        )
        if any(container.is_multi_model for container in containers):
            raise invalid(
                f'The model "{model.name}" has a container of Mode MultiModel, and a transform job names no '
                "TargetModel: make a model of Mode SingleModel of the archive."
            )
        reason = self._served.why_not_beside_others(containers)
        if reason:
            raise invalid(reason)
        return containers

    def _located(self, asked: Parameters) -> dict[str, Any]:
        """The request as it is kept, with urls as stores know them. Raises Unusable."""
        kept = {key: value for key, value in asked.items() if key not in ("TransformJobName", "Tags")}
        data, output = asked["TransformInput"], asked["TransformOutput"]
        source = data["DataSource"]["S3DataSource"]
        source = {**source, "S3Uri": self._url(source["S3Uri"], "TransformInput.DataSource.S3DataSource.S3Uri")}
        path = self._url(output["S3OutputPath"], "TransformOutput.S3OutputPath")
        kept["TransformInput"] = {**data, "DataSource": {"S3DataSource": source}}
        kept["TransformOutput"] = {**output, "S3OutputPath": path}
        return kept

    def _url(self, url: str, where: str) -> str:
        folder = located(url, where, is_multi_model=True, allowed_folders=self._allowed_folders)
        return folder if url.endswith("/") else folder.removesuffix("/")

    def _job(self, resource: Resource) -> TransformJob:
        """Raises BadJob."""
        document = resource.document
        containers = [container_of(stored) for stored in document["Containers"]]
        arn = self._records.arn_of(TRANSFORM, resource.name)
        is_stopping = document["Status"] == STOPPING
        return job_of(resource.name, arn, document["Asked"], containers, is_stopping=is_stopping)

    def _keep(self, job: Resource, **changes: Any) -> None:
        self._state.put(dataclasses.replace(job, modified=now(), document={**job.document, **changes}))

    def _row(self, job: Resource) -> Row:
        progress = {name: value for name, value in _progress(job).items() if name != "TransformStartTime"}
        shown = {**self._records.described(job, "TransformJobArn"), "LastModifiedTime": job.modified, **progress}
        return Row(job.name, job.created, job.modified, job.document["Status"], shown)


def _progress(job: Resource) -> dict[str, Any]:
    document = job.document
    shown = {
        "TransformJobStatus": document["Status"],
        "TransformStartTime": document.get("Started"),
        "TransformEndTime": document.get("Ended"),
        "FailureReason": document.get("FailureReason"),
    }
    return {name: value for name, value in shown.items() if value is not None}


def _with_environment(model: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """A job's variables go to all containers of its model, over the model's own."""

    def extended(definition: Mapping[str, Any]) -> dict[str, Any]:
        return {**definition, "Environment": {**definition.get("Environment", {}), **environment}}

    changed = dict(model)
    if "PrimaryContainer" in model:
        changed["PrimaryContainer"] = extended(model["PrimaryContainer"])
    if model.get("Containers"):
        changed["Containers"] = [extended(definition) for definition in model["Containers"]]
    return changed
