"""Batch transform: a model answers every record of the objects below a prefix, as SageMaker's transform jobs do."""

from polyhost.endpoint.transform.jobs import TransformJobs

__all__ = ["TransformJobs"]
