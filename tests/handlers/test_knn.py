"""k-NN: faiss's own neighbours and scikit-learn's labels, AWS's documented formats, archives that are broken."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost_handlers import faiss_index
from polyhost_handlers.base import ModelSource
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.faiss_index import BrokenIndex, read_index
from polyhost_handlers.knn_handler import KnnHandler
from polyhost_handlers.recordio import decode_recordio
from support.forms import examples
from support.records import encode_features

from handlers.calling import Model, csv, npy

FIXTURES = ROOT / "tests" / "data" / "knn"
VERSIONS = ("1.5.3", "1.8.0")
FOUND = {version: json.loads((FIXTURES / f"{version}.json").read_text()) for version in VERSIONS}
RANDOM = np.random.default_rng(20261126)
VECTORS = RANDOM.normal(size=(40, 3)).astype("f4")
LABELS = RANDOM.integers(0, 4, 40).astype("f4")
ROWS = RANDOM.normal(size=(6, 3)).round(3)


def flat(vectors: Any = VECTORS, inner: bool = False) -> bytes:
    """An index file as faiss writes it; what faiss itself has written is in the fixtures."""
    vectors = np.asarray(vectors, "f4")
    dummy = 1 << 20
    header = struct.pack("<iqqqBi", vectors.shape[1], len(vectors), dummy, dummy, 1, 0 if inner else 1)
    return (b"IxFI" if inner else b"IxF2") + header + struct.pack("<Q", vectors.size) + vectors.tobytes()


def put(folder: Path, index: bytes | None = None, labels: Any = LABELS, **metadata: Any) -> Path:
    document = {"k": 5, "predictor_type": "classifier", "normalize": False, "version": "1.0", **metadata}
    (folder / "model_algo-1").write_bytes(flat() if index is None else index)
    (folder / "model_algo-1.labels").write_bytes(labels if isinstance(labels, bytes) else labels.tobytes())
    (folder / "model_algo-1.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", FOUND[VERSIONS[0]]["found"])
def test_the_same_neighbours_as_faiss(version: str, kind: str) -> None:
    """Indexes of every kind that SageMaker makes, of the oldest faiss and of a new one; -1 is one that is missing."""
    found = FOUND[version]["found"][kind]
    index = read_index((FIXTURES / f"{version}-{kind}.index").read_bytes())
    got = index.search(np.array(FOUND[version]["rows"]), 5)

    assert index.count == found["count"]
    assert [ids.tolist() for ids, _ in got] == [[each for each in ids if each >= 0] for ids in found["ids"]]
    for (_, distances), right in zip(got, found["distances"], strict=True):
        np.testing.assert_allclose(distances, [each for each in right if each is not None], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("cells", [1, 100, 4_000_000])
@pytest.mark.parametrize(("spread", "offset"), [(1.0, 0.0), (1.0, 1e4), (1e-3, 1e3), (1e15, 0.0)])
def test_the_nearest_are_exact(spread: float, offset: float, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also far from the origin, where products of float32 lose what differs; many rows at a time, or one."""
    monkeypatch.setattr(faiss_index, "_MAX_CELLS", cells)
    monkeypatch.setattr(faiss_index, "_CHUNK_ROWS", 7)
    random = np.random.default_rng(7)
    vectors = (random.normal(size=(300, 5)) * spread + offset).astype("f4")
    rows = (random.normal(size=(11, 5)) * spread + offset).astype("f4")
    got = read_index(flat(vectors)).search(rows, 9)

    for row, (ids, distances) in zip(rows, got, strict=True):
        right = ((vectors.astype(float) - row.astype(float)) ** 2).sum(axis=1)
        np.testing.assert_array_equal(ids, np.lexsort((np.arange(300), right))[:9])
        np.testing.assert_allclose(distances, right[ids])


def test_of_equal_vectors_the_first_comes_first() -> None:
    index = read_index(flat([[1, 1], [0, 0], [1, 1], [0, 0]]))

    assert index.search(np.array([[0.0, 0.0]]), 3)[0][0].tolist() == [1, 3, 0]
    assert index.search(np.array([[0.0, 0.0]]), 99)[0][0].tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("handler", ["knn_handler", "auto"])
@pytest.mark.parametrize("k", [1, 4, 5, 40, 1000])
@pytest.mark.parametrize("predictor", ["classifier", "regressor"])
def test_the_same_labels_as_scikit_learn(
    predictor: str, k: int, handler: str, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """The most frequent label, of equally frequent ones the smallest; or the mean. More than there are is all."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    right = (KNeighborsClassifier if predictor == "classifier" else KNeighborsRegressor)(min(k, 40))
    answers = load(handler, put(tmp_path, k=k, predictor_type=predictor)).ask(csv(ROWS)).json()["predictions"]

    np.testing.assert_allclose(
        [one["predicted_label"] for one in answers], right.fit(VECTORS, LABELS).predict(ROWS.astype("f4")), rtol=1e-6
    )


def test_cosine_compares_directions(tmp_path: Path, load: Callable[..., Model]) -> None:
    """SageMaker's index of unit vectors with `normalize`: the row is made one, too; a row of zeros stays one."""
    from sklearn.neighbors import KNeighborsClassifier

    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    model = load("knn_handler", put(tmp_path, flat(unit, inner=True), normalize=True))
    right = KNeighborsClassifier(5, metric="cosine").fit(VECTORS, LABELS)
    answers = model.ask(csv(ROWS * 100)).json()["predictions"]

    assert [one["predicted_label"] for one in answers] == right.predict(ROWS).tolist()
    assert model.ask(b"0,0,0").status == 200


# As in AWS's page of k-NN's formats.
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"1.5,0.25,-1\n-3,2,0", "text/csv"),
        (b"7,1.5,0.25,-1\n7,-3,2,0", "text/csv; label_size=1"),
        (b"7,8,1.5,0.25,-1\n7,8,-3,2,0", "text/csv;LABEL_SIZE=2;charset=utf-8"),
        (
            b'{"instances": [{"data": {"features": {"values": [1.5, 0.25, -1]}}}, {"features": [-3, 2, 0]}]}',
            "application/json",
        ),
        (
            b'{"features": [1.5, 0.25, -1]}\n{"data": {"features": {"values": [-3, 2, 0]}}}',
            "application/jsonlines",
        ),
        (encode_features([[1.5, 0.25, -1], [-3, 2, 0]]), "application/x-recordio-protobuf"),
    ],
)
def test_every_input(body: bytes, content_type: str, tmp_path: Path, load: Callable[..., Model]) -> None:
    model = load("knn_handler", put(tmp_path))
    answers = model.ask(body, content_type, "application/json; verbose=true").json()["predictions"]

    for row, one in zip([[1.5, 0.25, -1], [-3, 2, 0]], answers, strict=True):
        right = ((VECTORS.astype(float) - row) ** 2).sum(axis=1)
        np.testing.assert_allclose(one["distances"], np.sort(right)[:5], rtol=1e-7)
        assert one["labels"] == LABELS[np.argsort(right)[:5]].tolist()


def test_every_output(tmp_path: Path, load: Callable[..., Model]) -> None:
    """AWS's documented forms; distances from the smallest to the largest, with the labels that belong to them."""
    vectors, labels = [[0, 0], [3, 4], [6, 8], [0, 1]], np.array([1, 2, 2, 7], "f4")
    model = load("knn_handler", put(tmp_path, flat(vectors), labels, k=3))
    brief = {"predicted_label": 1.0}
    whole = {"predicted_label": 1.0, "distances": [0.0, 1.0, 25.0], "labels": [1.0, 7.0, 2.0]}

    assert model.ask(b"0,0").json() == {"predictions": [brief]}
    assert model.ask(b"0,0", accept="application/json; verbose=false").json() == {"predictions": [brief]}
    for accept in ("application/json; verbose=true", "application/json;verbose=True", "*/*; verbose=true"):
        assert model.ask(b"0,0", accept=accept).json() == {"predictions": [whole]}
    assert model.ask(b"0,0\n0,0", accept="application/jsonlines").body.decode() == (json.dumps(brief) + "\n") * 2
    assert model.ask(b"0,0", accept="application/jsonlines; verbose=true").json() == whole
    assert model.ask(b"0,0\n0,0", accept="text/csv").body == b"1.0\n1.0"
    assert model.ask(b"0,0", accept="text/csv; verbose=true").body == b"1.0,1.0,7.0,2.0,0.0,1.0,25.0"
    record = model.ask(b"0,0", accept="application/x-recordio-protobuf; verbose=true").body
    for name in (b"predicted_label", b"distances", b"labels"):
        assert name in record
    assert np.array([0, 1, 25], "f4").tobytes() in record
    with pytest.raises(Exception, match="no feature"):
        decode_recordio(record)


def test_labels_may_be_numpys_file(tmp_path: Path, load: Callable[..., Model]) -> None:
    plain = load("knn_handler", put(tmp_path)).ask(csv(ROWS)).body

    assert load("knn_handler", put(tmp_path, labels=npy(LABELS.astype("f8")))).ask(csv(ROWS)).body == plain


def test_an_index_that_finds_nothing_says_so(tmp_path: Path, load: Callable[..., Model]) -> None:
    """IVF looks into a few lists, which may be empty: then there is no label to give."""
    found = FOUND["1.8.0"]["found"]["ivfflat-sparse"]
    number = next(number for number, ids in enumerate(found["ids"]) if max(ids) < 0)
    index = (FIXTURES / "1.8.0-ivfflat-sparse.index").read_bytes()
    model = load("knn_handler", put(tmp_path, index, np.zeros(found["count"], "f4")))
    answer = model.ask(csv(np.array([FOUND["1.8.0"]["rows"][number]])))

    assert (answer.status, answer.message) == (
        500,
        "The index has no vector near this row: its lists there are empty.",
    )


@pytest.mark.parametrize(
    ("body", "content_type", "status", "sentence"),
    [
        (b"", "text/csv", 204, ""),
        (b"1,2", "text/csv", 400, "Each row has 2 features, the model was trained on 3."),
        (b"1,2,3,4", "text/csv", 400, "Each row has 4 features"),
        (b"1,2,3", "text/csv; label_size=1", 400, "Each row has 2 features"),
        (b"1,2,3", "text/csv; label_size=one", 400, "Content-Type has label_size=one: send a whole number."),
        (b"1,,3", "text/csv", 400, "This model cannot take missing or infinite values"),
        (b"1,1e39,3", "text/csv", 400, "A number is too large for this model"),
        (b"{", "application/json", 400, "not JSON"),
        (npy(ROWS), "application/x-npy", 415, "send text/csv, application/json"),
    ],
)
def test_codes(
    body: bytes, content_type: str, status: int, sentence: str, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """A client's mistake is a 4xx that says what to change."""
    answer = load("knn_handler", put(tmp_path)).ask(body, content_type)

    assert answer.status == status
    assert status < 400 or sentence in answer.message


@pytest.mark.parametrize("row", ["1e38,-1e38,1e38", "3e38,3e38,3e38"])
def test_a_row_that_is_far_too_large_still_has_neighbours(row: str, tmp_path: Path, load: Callable[..., Model]) -> None:
    answer = load("knn_handler", put(tmp_path)).ask(row.encode(), accept="application/json; verbose=true")

    right = ((VECTORS.astype(float) - np.array(row.split(","), "f4").astype(float)) ** 2).sum(axis=1)
    (one,) = answer.json()["predictions"]
    np.testing.assert_allclose(one["distances"], np.sort(right)[:5])


def hnsw() -> bytes:
    return b"IHNf" + flat()[4:]


def ivf_without_lists() -> bytes:
    data = (FIXTURES / "1.8.0-ivfflat.index").read_bytes()
    return data.replace(b"ilar", b"ilod")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"dimension_reduction": {"type": "sign", "seed": 3, "target_dim": 10, "input_dim": 20}},
            "it was trained with dimension_reduction_type sign, whose random projection is made inside SageMaker's",
        ),
        ({"dimension_reduction": {"type": "fjlt"}}, "it was trained with dimension_reduction_type fjlt"),
        ({"k": 0}, "model_algo-1.json has k 0: write a whole number from 1 to"),
        ({"k": "5"}, "model_algo-1.json has k 5: write a whole number"),
        ({"k": True}, "model_algo-1.json has k True"),
        ({"k": 2**40}, "model_algo-1.json has k 1099511627776"),
        ({"predictor_type": "ranker"}, "model_algo-1.json has predictor_type ranker: write classifier or regressor."),
        ({"index": b"PK\x03\x04"}, "model_algo-1 is not a readable index: it is of faiss's kind 504b0304"),
        ({"index": b""}, "model_algo-1 is not a readable index: it ends at byte 0, 4 more were due at 0"),
        ({"index": hnsw()}, "it is of faiss's kind IHNf; Flat, IVFFlat and IVFPQ are read"),
        ({"index": ivf_without_lists()}, "its lists are not in the file"),
        ({"index": flat([[np.nan, 1.0, 1.0]])}, "its vectors are not numbers, or so large"),
        ({"index": flat([[1e30, 1.0, 1.0], [0, 0, 0]])}, "its vectors are not numbers, or so large"),
        ({"index": flat(np.zeros((0, 3)))}, "it holds no vector"),
        (
            {"index": (FIXTURES / "1.8.0-idmap.index").read_bytes()[:-8] + b"\xff" * 8},
            "it has ids from -1 to 59 for 60",
        ),
        ({"labels": LABELS[:-1]}, "model_algo-1.labels has 39 labels for 40 vectors."),
        ({"labels": LABELS.tobytes()[:-1]}, "model_algo-1.labels has 159 bytes, which are no float32 numbers."),
        ({"labels": npy(LABELS.reshape(2, 20))}, "model_algo-1.labels is not a list of numbers."),
        ({"labels": npy(LABELS)[:-9]}, "model_algo-1.labels: The body is not a .npy file"),
    ],
)
def test_what_is_refused(change: dict[str, Any], sentence: str, tmp_path: Path, load: Callable[..., Model]) -> None:
    with pytest.raises(LoadFailed) as raised:
        load("knn_handler", put(tmp_path, **change))

    assert raised.value.message.startswith("Unable to load model: ")
    assert sentence in raised.value.message


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_metadata_that_is_none(content: bytes, tmp_path: Path, load: Callable[..., Model]) -> None:
    (put(tmp_path) / "model_algo-1.json").write_bytes(content)
    with pytest.raises(LoadFailed, match=r"model_algo-1.json is n"):
        load("knn_handler", tmp_path)


@pytest.mark.parametrize("reduction", [None, {}, {"type": None}, {"type": ""}, ""])
def test_no_dimension_reduction_is_none(reduction: Any, tmp_path: Path, load: Callable[..., Model]) -> None:
    assert load("knn_handler", put(tmp_path, dimension_reduction=reduction)).ask(csv(ROWS)).status == 200


@pytest.mark.parametrize("kind", ["flat-l2", "ivfflat", "ivfflat-sparse", "ivfpq", "idmap"])
def test_numbers_that_are_none_are_refused_wherever_they_are(kind: str) -> None:
    """Vectors, centroids and codebooks: what is read answers without a warning of numpy's, which is an error here."""
    content = (FIXTURES / f"1.8.0-{kind}.index").read_bytes()
    refused = 0
    for value in (math.nan, math.inf, 3e38):
        for position in range(len(content) % 7, len(content) - 4, 7):
            damaged = content[:position] + struct.pack("<f", value) + content[position + 4 :]
            try:
                read_index(damaged).search(np.zeros((1, 4)), 3)
            except BrokenIndex as error:
                refused += "are not numbers" in str(error)
    assert refused > 10


@settings(max_examples=examples(60))
@given(data=st.data())
def test_a_damaged_index_is_refused_or_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cut off anywhere, or with any bytes changed: an index or a sentence, and memory in proportion to the file."""
    kind = data.draw(st.sampled_from(["flat-l2", "ivfflat", "ivfflat-sparse", "ivfpq", "idmap"]))
    content = bytearray((FIXTURES / f"1.8.0-{kind}.index").read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        places = st.integers(0, min(300, len(content) - 1))
        for position, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
            content[position] = byte
    with contextlib.suppress(BrokenIndex):
        read_index(bytes(content)).search(np.zeros((1, 4)), 3)
    folder = tmp_path_factory.mktemp("damaged")
    with contextlib.suppress(LoadFailed):
        KnnHandler.load(ModelSource(put(folder, bytes(content), np.zeros(60, "f4")), "m", {}))
