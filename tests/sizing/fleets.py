"""Measured models for tests, without a server."""

from __future__ import annotations

from collections.abc import Sequence

from polyhost.sizing.fleet import Measured
from polyhost.sizing.sample import Sample

MIB = 1024**2


def measured(
    key: str, archive_bytes: int, grown_bytes: int, *, kind: str = "xgboost", is_first: bool = False,
    store_secs: float = 0.5, disk_secs: float = 0.1, calls_secs: Sequence[float] = (0.001, 0.002),
) -> Measured:  # fmt: skip
    return Measured(
        key, kind, archive_bytes, grown_bytes, is_first, store_secs, disk_secs, tuple(calls_secs),
        is_first_from_disk=is_first,
    )  # fmt: skip


def sample_of(
    *models: Measured, idle_bytes: int = 100 * MIB, call_cpu_secs: float = 0.0, load_cpu_secs: float = 0.0
) -> Sample:
    return Sample(models, {}, 0, idle_bytes, call_cpu_secs, load_cpu_secs)
