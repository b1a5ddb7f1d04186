"""
An object taken apart into records, these put together to payloads, and the answers to an object again.

`batches` reads a file as it goes, so that an object may be larger than the memory. Pure, but for that file.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from polyhost.endpoint.transform.definitions import TransformJob
from polyhost.endpoint.transform.filters import BadRecord

_RECORDIO_MAGIC = 0xCED7230A
_RECORDIO_HEADER = struct.Struct("<II")
_RECORDIO_LENGTH = 2**29 - 1
_TFRECORD_HEADER = struct.Struct("<QI")
_CHECKSUM_BYTES = 4

Batch = tuple[bytes, ...]


def batches(file: Path, job: TransformJob) -> Iterator[Batch]:
    """The records of each payload of an object. Raises BadRecord, OSError."""
    with gzip.open(file) if job.is_gzip else file.open("rb") as stream:
        try:
            yield from _batched(_records(stream, job), job)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BadRecord(f"it is not a whole gzip file, as CompressionType Gzip says it is: {error}") from error


def _records(stream: io.BufferedIOBase, job: TransformJob) -> Iterator[bytes]:
    most = job.max_payload_bytes
    match job.split:
        case "Line":
            return _lines(stream, most)
        case "RecordIO":
            return _recordio(stream, most)
        case "TFRecord":
            return _tfrecords(stream, most)
        case _:
            return _whole(stream, most)


def _whole(stream: io.BufferedIOBase, most: int) -> Iterator[bytes]:
    content = stream.read(most + 1)
    _require_small(len(content), most)
    if content:
        yield content


def _lines(stream: io.BufferedIOBase, most: int) -> Iterator[bytes]:
    """Without their ends; empty ones are no records."""
    while line := stream.readline(most + 2):
        record = line.rstrip(b"\r\n")
        _require_small(len(record), most)
        if record:
            yield record


def _recordio(stream: io.BufferedIOBase, most: int) -> Iterator[bytes]:
    while header := stream.read(_RECORDIO_HEADER.size):
        if len(header) < _RECORDIO_HEADER.size:
            raise BadRecord("it ends in the middle of a record")
        magic, flags_and_length = _RECORDIO_HEADER.unpack(header)
        if magic != _RECORDIO_MAGIC:
            raise BadRecord("it is not RecordIO: a record begins with other bytes than 0xced7230a")
        length = flags_and_length & _RECORDIO_LENGTH
        yield header + _exactly(stream, length + -length % 4, most)


def _tfrecords(stream: io.BufferedIOBase, most: int) -> Iterator[bytes]:
    while header := stream.read(_TFRECORD_HEADER.size):
        if len(header) < _TFRECORD_HEADER.size:
            raise BadRecord("it ends in the middle of a record")
        length, _ = _TFRECORD_HEADER.unpack(header)
        yield header + _exactly(stream, length + _CHECKSUM_BYTES, most)


def _exactly(stream: io.BufferedIOBase, length: int, most: int) -> bytes:
    _require_small(length, most)
    content = stream.read(length)
    if len(content) < length:
        raise BadRecord("it ends in the middle of a record")
    return content


def _require_small(length: int, most: int) -> None:
    if length > most:
        raise BadRecord(f"a record has more than {most} bytes: raise MaxPayloadInMB, or split it by SplitType")


def _batched(records: Iterator[bytes], job: TransformJob) -> Iterator[Batch]:
    if not job.is_multi_record or job.split == "None":
        yield from ((record,) for record in records)
        return
    batch: list[bytes] = []
    size = 0
    for record in records:
        if batch and size + len(record) + 1 > job.max_payload_bytes:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(record)
        size += len(record) + 1
    if batch:
        yield tuple(batch)


def payload(batch: Batch, job: TransformJob) -> bytes:
    """What the model is sent. Raises BadRecord."""
    if job.filters is not None:
        return b"\n".join(job.filters.request(record) for record in _parts(batch, job))
    return (b"\n" if job.split == "Line" else b"").join(batch)


def output(batch: Batch, answer: bytes, job: TransformJob) -> bytes:
    """What is written of the model's answer. Raises BadRecord."""
    if job.filters is None:
        return _ended(answer) if job.assembles_lines else answer
    records = _parts(batch, job)
    pairs = zip(records, _answers(answer, len(records)), strict=True)
    results = (job.filters.result(record, one) for record, one in pairs)
    return b"".join(_ended(one) for one in results) if job.writes_lines else b"\n".join(results)


def _ended(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"


def _parts(batch: Batch, job: TransformJob) -> Sequence[bytes]:
    """The records that filters see: of CSV, and of lines of JSON, that was not split, each line is one."""
    assert job.filters is not None
    if job.split == "Line" or not job.filters.is_by_line:
        return batch
    return [line for line in b"".join(batch).splitlines() if line]


def _answers(answer: bytes, count: int) -> Sequence[bytes]:
    if count == 1:
        return [answer.rstrip(b"\r\n")]
    lines = [line for line in answer.splitlines() if line]
    if len(lines) != count:
        raise BadRecord(
            f"the model has answered {count} records with {len(lines)} lines, so that they cannot be told apart: ask "
            "for text/csv or application/jsonlines by Accept, or use BatchStrategy SingleRecord"
        )
    return lines
