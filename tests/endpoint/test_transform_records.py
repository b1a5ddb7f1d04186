"""Objects of transform jobs taken apart and put together, their names, and the paths of DataProcessing: no process."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.transform.definitions import BadJob, TransformJob, job_of
from polyhost.endpoint.transform.filters import BadRecord, path_of
from polyhost.endpoint.transform.names import BadManifest, inputs_below, inputs_of_manifest
from polyhost.endpoint.transform.records import batches, output, payload
from polyhost.endpoint.transform.work import may_pass
from polyhost.service_errors import ModelError, ModelNotReady, StoreFailed, ValidationError
from support.records import encode_features

MIB = 1024**2
LINES = {"SplitType": "Line", "ContentType": "text/csv"}


def job(taken: Mapping[str, Any] = LINES, given: Mapping[str, Any] | None = None, **asked: Any) -> TransformJob:
    data = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/in/"}}
    request = {
        "TransformInput": {"DataSource": data, **taken},
        "TransformOutput": {"S3OutputPath": "s3://b/out", "Accept": "text/csv", **(given or {})},
        **asked,
    }
    return job_of("job", "arn", request, [Container(source="s3://b/m.tar.gz", is_multi_model=False)])


def split(content: bytes, one: TransformJob, tmp_path: Path) -> list[tuple[bytes, ...]]:
    file = tmp_path / "input"
    file.write_bytes(content)
    return list(batches(file, one))


# Splitting


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"1,2\n3,4\n", (b"1,2", b"3,4")),
        (b"1,2\r\n3,4", (b"1,2", b"3,4")),
        (b"1,2\n\n\n3,4\n", (b"1,2", b"3,4")),
        (b"\n", None),
        (b"", None),
    ],
)
def test_lines(content: bytes, records: tuple[bytes, ...] | None, tmp_path: Path) -> None:
    assert split(content, job(), tmp_path) == ([records] if records else [])


def test_a_single_record_is_a_payload(tmp_path: Path) -> None:
    assert split(b"1\n2\n", job(BatchStrategy="SingleRecord"), tmp_path) == [(b"1",), (b"2",)]


def test_without_a_split_an_object_is_a_payload(tmp_path: Path) -> None:
    one = job({"ContentType": "text/csv"})
    (batch,) = split(b"1\n2\n", one, tmp_path)

    assert payload(batch, one) == b"1\n2\n"


def test_no_payload_is_larger_than_asked(tmp_path: Path) -> None:
    """And none is smaller than it must be: with the next record it would be too large."""
    one = job(MaxPayloadInMB=1)
    records = [b"%d," % number + b"x" * 100_000 for number in range(40)]

    found = split(b"\n".join(records), one, tmp_path)

    assert [record for batch in found for record in batch] == records
    sizes = [len(payload(batch, one)) for batch in found]
    assert max(sizes) <= MIB
    assert min(sizes[:-1]) + 100_000 + 4 > MIB


@pytest.mark.parametrize("taken", [LINES, {"ContentType": "text/csv"}, {**LINES, "CompressionType": "Gzip"}])
def test_a_record_that_is_too_large(taken: dict[str, str], tmp_path: Path) -> None:
    content = b"x" * (MIB + 1)
    if "CompressionType" in taken:
        content = gzip.compress(content)

    with pytest.raises(BadRecord, match="more than 1048576 bytes: raise MaxPayloadInMB"):
        split(content, job(taken, MaxPayloadInMB=1), tmp_path)


def test_the_largest_record_is_taken(tmp_path: Path) -> None:
    assert split(b"x" * MIB + b"\n", job(MaxPayloadInMB=1), tmp_path) == [(b"x" * MIB,)]


def test_recordio_is_split_into_its_records(tmp_path: Path) -> None:
    """As SageMaker's own algorithms are sent it: each record with its frame."""
    records = [encode_features([[1.0, 2.0]]), encode_features([[3.0] * 7]), encode_features([[4.0]])]
    taken = {"SplitType": "RecordIO", "ContentType": "application/x-recordio-protobuf"}

    assert split(b"".join(records), job(taken, BatchStrategy="SingleRecord"), tmp_path) == [(one,) for one in records]
    (all_of_them,) = split(b"".join(records), job(taken), tmp_path)
    assert payload(all_of_them, job(taken)) == b"".join(records)


def test_tfrecords_are_split(tmp_path: Path) -> None:
    records = [struct.pack("<QI", len(text), 1) + text + b"crc4" for text in (b"one", b"three")]

    found = split(b"".join(records), job({"SplitType": "TFRecord"}, BatchStrategy="SingleRecord"), tmp_path)

    assert found == [(one,) for one in records]


@pytest.mark.parametrize("kind", ["RecordIO", "TFRecord"])
@pytest.mark.parametrize("cut", [1, 5, 10, 21])
def test_frames_that_are_cut(kind: str, cut: int, tmp_path: Path) -> None:
    whole = {"RecordIO": encode_features([[1.0]]), "TFRecord": struct.pack("<QI", 8, 1) + b"12345678" + b"crc4"}[kind]

    with pytest.raises(BadRecord, match="ends in the middle"):
        split(whole + whole[:cut], job({"SplitType": kind}), tmp_path)


def test_a_frame_of_any_length_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(BadRecord, match="more than"):
        split(struct.pack("<QI", 2**63, 1), job({"SplitType": "TFRecord"}), tmp_path)


def test_no_recordio(tmp_path: Path) -> None:
    with pytest.raises(BadRecord, match="not RecordIO"):
        split(b"1,2,3,4,5", job({"SplitType": "RecordIO"}), tmp_path)


# gzip writes the time: without ids of their own, the processes of a run would collect tests of other names.
@pytest.mark.parametrize("content", [b"1,2\n", gzip.compress(b"1,2\n" * 1000)[:-12]], ids=["none", "cut off"])
def test_broken_gzip(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadRecord, match="not a whole gzip file, as CompressionType Gzip"):
        split(content, job({**LINES, "CompressionType": "Gzip"}), tmp_path)


# Paths, by the examples of SageMaker's guide and of Jayway's JsonPath, which it names


@pytest.mark.parametrize(
    ("path", "value", "result"),
    [
        ("$", [1, 2], [1, 2]),
        ("$[1:]", [1, 2, 3], [2, 3]),
        ("$[:-1]", [1, 2, 3], [1, 2]),
        ("$[0]", [1, 2], 1),
        ("$[0,-1]", [1, 2, 3], [1, 3]),
        ("$[*]", [1, 2], [1, 2]),
        ("$.*", {"a": 1, "b": 2}, [1, 2]),
        ("$.a", {"a": 1}, 1),
        ("$.a.b[0]", {"a": {"b": [7]}}, 7),
        ("$['a b']", {"a b": 1}, 1),
        ("$['id','SageMakerOutput']", {"id": 1, "SageMakerOutput": 2, "x": 3}, {"id": 1, "SageMakerOutput": 2}),
        ("$.rows[*].x", {"rows": [{"x": 1}, {"x": 2}]}, [1, 2]),
        ("$.rows[1:].x", {"rows": [{"x": 1}, {"x": 2}]}, [2]),
    ],
)
def test_paths(path: str, value: Any, result: Any) -> None:
    assert path_of(path, "InputFilter").of(value) == result


@pytest.mark.parametrize("text", ["", "a", "$.", "$[", "$..a", "$[?(@.a)]", "$[::2]", "$['a','b'].c", "$.a b", "$[x]"])
def test_paths_that_are_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match=r"OutputFilter .* is not understood"):
        path_of(text, "OutputFilter")


@pytest.mark.parametrize(
    ("path", "value"), [("$.a", {}), ("$.a", [1]), ("$[3]", [1]), ("$[0]", {"0": 1}), ("$[1:]", "text"), ("$.a", "a")]
)
def test_paths_that_lead_to_nothing(path: str, value: Any) -> None:
    with pytest.raises(BadRecord, match="leads to nothing"):
        path_of(path, "InputFilter").of(value)


# What goes in and comes out


def processed(records: list[bytes], answer: bytes, one: TransformJob) -> tuple[bytes, bytes]:
    """The payload, and what is written for the answer."""
    return payload(tuple(records), one), output(tuple(records), answer, one)


JSON = {"ContentType": "application/json"}
JSON_LINES = {"ContentType": "application/jsonlines", "SplitType": "Line"}


@pytest.mark.parametrize(
    ("taken", "accept", "filters", "records", "answer", "sent", "written"),
    [
        (LINES, "text/csv", {"InputFilter": "$[1:]"}, [b"id1,2,3", b"id2,4,5"], b"a\nb", b"2,3\n4,5", b"a\nb\n"),
        (LINES, "text/csv", {"JoinSource": "Input"}, [b"1,2", b"3"], b"a,b\nc,d\n", b"1,2\n3", b"1,2,a,b\n3,c,d\n"),
        (LINES, "text/csv", {"OutputFilter": "$[0]"}, [b"1", b"2"], b"a,b\nc,d", b"1\n2", b"a\nc\n"),
        (LINES, "text/csv", {"InputFilter": "$[0]"}, [b'"a,b",1'], b"1", b'"a,b"', b"1\n"),
        (JSON_LINES, "application/jsonlines", {"JoinSource": "Input"}, [b'{"a": 1}'], b'{"score": 2}', b'{"a": 1}',
         b'{"a":1,"SageMakerOutput":{"score":2}}\n'),
        (JSON_LINES, "application/jsonlines", {"JoinSource": "Input"}, [b"[1]"], b"2", b"[1]",
         b'{"SageMakerInput":[1],"SageMakerOutput":2}\n'),
        (JSON, "application/json", {"InputFilter": "$.x", "JoinSource": "Input"}, [b'{\n"x": [1]\n}'], b"[\n9\n]",
         b"[1]", b'{"x":[1],"SageMakerOutput":[9]}'),
        ({"ContentType": "text/csv"}, "text/csv", {"InputFilter": "$[1:]"}, [b"a,1\nb,2\n"], b"8\n9\n", b"1\n2",
         b"8\n9"),
    ],
)  # fmt: skip
def test_filters(
    taken: dict[str, str], accept: str, filters: dict[str, str], records: list[bytes], answer: bytes, sent: bytes,
    written: bytes,
) -> None:  # fmt: skip
    assert processed(records, answer, job(taken, {"Accept": accept}, DataProcessing=filters)) == (sent, written)


def test_answers_that_cannot_be_told_apart() -> None:
    one = job(DataProcessing={"JoinSource": "Input"})

    with pytest.raises(BadRecord, match="2 records with 1 lines"):
        output((b"1", b"2"), b"[1, 2]", one)


@pytest.mark.parametrize(
    ("record", "answer"), [(b'{"a"', b"1"), (b"[" * 100_000, b"1"), (b"1", b"NaN,"), (b"\xff", b"1")]
)
def test_what_is_not_json(record: bytes, answer: bytes) -> None:
    one = job(JSON_LINES, {"Accept": "application/jsonlines"}, DataProcessing={"JoinSource": "Input"})

    with pytest.raises(BadRecord, match="is not JSON"):
        output((record,), answer, one)


@pytest.mark.parametrize(
    ("assemble", "answer", "written"),
    [("None", b"1\n2", b"1\n2"), ("Line", b"1\n2", b"1\n2\n"), ("Line", b"1\n2\n", b"1\n2\n")],
)
def test_answers_are_assembled(assemble: str, answer: bytes, written: bytes) -> None:
    assert output((b"1", b"2"), answer, job(given={"AssembleWith": assemble})) == written


# Names


@pytest.mark.parametrize(
    ("url", "key", "written"),
    [
        ("s3://b/in/", "in/a.csv", "a.csv.out"),
        ("s3://b/in", "in/a.csv", "a.csv.out"),
        ("s3://b/in/", "in/below/a.csv", "below/a.csv.out"),
        ("s3://b/in/a.csv", "in/a.csv", "a.csv.out"),
        ("s3://b/in/a", "in/abc.csv", "abc.csv.out"),
        ("s3://b/", "a.csv", "a.csv.out"),
        ("s3://b", "in/a.csv", "in/a.csv.out"),
        ("/data/in", "in/a.csv", "a.csv.out"),
        ("/data/in/", "below/a.csv", "below/a.csv.out"),
    ],
)
def test_names_of_outputs(url: str, key: str, written: str) -> None:
    """As SageMaker's SDK names them in its local mode."""
    (one,) = inputs_below(url, [key], "s3://other/")

    assert one.output == written


def test_folders_and_outputs_are_no_inputs() -> None:
    found = inputs_below("s3://b/in/", ["in/", "in/b", "in/a", "in/out/a.out", "in/out/c"], "s3://b/in/out/")

    assert [one.key for one in found] == ["in/a", "in/b", "in/out/c"]


def test_a_manifest() -> None:
    (one, other) = inputs_of_manifest(json.dumps([{"prefix": "s3://b/some/"}, "x/a.csv", "b.csv"]).encode())

    assert (one.url, one.output) == ("s3://b/some/x/a.csv", "x/a.csv.out")
    assert (other.source, other.key) == ("s3://b/", "some/b.csv")


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "{}",
        "[]",
        "[1]",
        '["a"]',
        '[{"prefix": 1}]',
        '[{"prefix": "s3://b/"}, 1]',
        '[{"prefix": "/etc/"}, "passwd"]',
    ],
)
def test_what_is_no_manifest(manifest: str) -> None:
    with pytest.raises(BadManifest):
        inputs_of_manifest(manifest.encode())


# Jobs


@pytest.mark.parametrize(
    ("asked", "payload_mib", "concurrent"),
    [
        ({}, 6, 1),
        ({"MaxPayloadInMB": 0}, 100, 1),
        ({"MaxPayloadInMB": 0, "MaxConcurrentTransforms": 10}, 10, 10),
        ({"MaxConcurrentTransforms": 50}, 2, 50),
        ({"MaxConcurrentTransforms": 0, "MaxPayloadInMB": 100}, 100, 1),
        ({"MaxConcurrentTransforms": 25, "MaxPayloadInMB": 4}, 4, 25),
    ],
)
def test_sizes(asked: dict[str, int], payload_mib: int, concurrent: int) -> None:
    one = job(**asked)

    assert (one.max_payload_bytes, one.max_concurrent) == (payload_mib * MIB, concurrent)


def test_sizes_that_are_too_large() -> None:
    with pytest.raises(BadJob, match="is 104, 100 are allowed"):
        job(MaxConcurrentTransforms=26, MaxPayloadInMB=4)


def test_containers_know_that_it_is_a_batch() -> None:
    """As the built-in XGBoost does, whose rows come on lines of their own then."""
    (container,) = job(ModelClientConfig={"InvocationsTimeoutInSeconds": 1200}).containers

    assert container.environ == (("SAGEMAKER_BATCH", "true"),)
    assert container.response_timeout_secs == 1200


@pytest.mark.parametrize(
    ("error", "is_asked_again"),
    [
        (ModelError("", 500, ""), True),
        (ModelError("", 503, ""), True),
        (ModelError("", 400, ""), False),
        (ModelNotReady(""), True),
        (StoreFailed(""), True),
        (ValidationError(""), False),
    ],
)
def test_which_calls_are_made_again(error: Any, is_asked_again: bool) -> None:
    assert may_pass(error) is is_asked_again


def test_a_long_field_is_a_field() -> None:
    """Python's own limit for CSV is 128 KiB."""
    field = b"x" * 200_000
    one = job(DataProcessing={"InputFilter": "$[0]"})

    assert payload((field + b",1",), one) == field
