"""RecordIO as clients send it."""

from __future__ import annotations

from collections.abc import Sequence

from polyhost_handlers import recordio


def encode_features(rows: Sequence[Sequence[float]]) -> bytes:
    """One record for each dense row."""
    frames = []
    for row in rows:
        record = recordio._record_class()()
        record.features["values"].float32_tensor.values.extend(row)
        frames.append(recordio._frame(record.SerializeToString()))
    return b"".join(frames)
