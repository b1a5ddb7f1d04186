"""Rows that the front answers: the same bytes as the model's handler, or none."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost.engine.native.messages import Load
from polyhost.engine.native.models import PlainModel, load_model
from polyhost.engine.native.rows import MOST_MICROSECS, RowModel, RowModels, is_quick
from polyhost.engine.protocol import Item
from polyhost_handlers import xgboost_handler
from polyhost_handlers.base import ModelSource
from polyhost_handlers.compiled.library import library
from polyhost_handlers.compiled.rows import VARIABLES, PlainRows, Shape
from support.forms import examples

pytestmark = pytest.mark.skipif(library is None, reason="the library in C was not built: there was no compiler")

FEATURES = 3
OBJECTIVES: dict[str, dict[str, Any]] = {
    "number": {"objective": "reg:squarederror"},
    "chance": {"objective": "binary:logistic"},
    "count": {"objective": "count:poisson"},
    "class": {"objective": "multi:softmax", "num_class": 3},
    "chances": {"objective": "multi:softprob", "num_class": 3},
}
CONTENT_TYPES = (
    "text/csv", "", "csv", "application/csv; a=b", "text/csv; header=present", "text/csv; header=absent", "text/plain",
    "application/json", "application/octet-stream", "application/x-www-form-urlencoded", "text/libsvm", "image/png",
)  # fmt: skip
ACCEPTS = (
    "",
    "*/*",
    "text/csv",
    "application/json",
    "text/*",
    "application/jsonlines, text/csv",
    "a/b, text/csv",
    "a/b",
)
FIELD = st.one_of(
    st.floats(width=32).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["", "nan", "1e39", " 1", "x"]),
)
BODIES = st.one_of(
    st.lists(FIELD, min_size=FEATURES, max_size=FEATURES).map(",".join),
    st.lists(st.floats(-1000, 1000).map(repr), min_size=1, max_size=5).map(",".join),
    st.lists(st.lists(st.floats(-9, 9).map(repr), min_size=3, max_size=3).map(",".join), max_size=3).map("\n".join),
    st.text(max_size=20),
).flatmap(lambda text: st.sampled_from(["", "\n", "\r\n", "\n\n"]).map(lambda end: (text + end).encode()))


def model_of(
    folder: Path,
    parameters: dict[str, Any],
    rounds: int = 5,
    features: int = FEATURES,
    names: list[str] | None = None,
) -> PlainModel:
    random = np.random.default_rng(3)
    rows = random.normal(size=(60, features)) * 10
    labels = np.abs(rows[:, 0]).astype(int) % parameters.get("num_class", 2)
    folder.mkdir()
    booster = xgboost.train(
        {"nthread": 1, "max_depth": 3, **parameters}, xgboost.DMatrix(rows, labels, feature_names=names), rounds
    )
    (folder / "xgboost-model").write_bytes(booster.save_raw("ubj"))
    order = Load(1, 1, folder.name, str(folder), "polyhost_handlers.xgboost_handler:handle", 1, False, False, 2**20)
    model = load_model(order)
    assert isinstance(model, PlainModel)
    return model


def own(model: PlainModel) -> RowModel | None:
    rows = model.plain_rows()
    return None if rows is None else RowModels(has_readers=False).adopt(rows, "model")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PlainModel]]:
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGEMAKER_MULTI_MODEL", "true")
        yield {name: model_of(folder / name, parameters) for name, parameters in OBJECTIVES.items()}


@pytest.mark.parametrize("name", ["number", "chance", "count", "class"])
def test_whatever_the_front_answers_its_handler_answers_too(name: str, models: dict[str, PlainModel]) -> None:
    """Status, fields and bytes. What the front leaves alone is the worker's."""
    model = models[name]
    in_front = own(model)
    assert in_front is not None
    answered = 0

    @settings(max_examples=examples(75))
    @given(body=BODIES, content_type=st.sampled_from(CONTENT_TYPES), accept=st.sampled_from(ACCEPTS))
    def alike(body: bytes, content_type: str, accept: str) -> None:
        nonlocal answered
        headers = {key: value for key, value in (("content-type", content_type), ("accept", accept)) if value}
        item = Item("id", headers, "", body)
        answer = in_front.answer(item)
        if answer is not None:
            answered += 1
            assert [answer] == model.predict([item])

    alike()
    assert answered > 5


def test_a_plain_row_is_answered_in_front(models: dict[str, PlainModel]) -> None:
    """By what SageMaker's clients send; not with a query, nor of more than one row, nor several numbers for a row."""
    in_front = own(models["number"])
    assert in_front is not None
    headers = {"content-type": "text/csv"}

    assert in_front.answer(Item("id", headers, "", b"1,2,3")) is not None
    assert in_front.answer(Item("id", headers, "a=b", b"1,2,3")) is None
    assert in_front.answer(Item("id", headers, "", b"1,2,3\n4,5,6")) is None
    assert in_front.answer(Item("id", headers, "", b"1,2")) is None
    assert own(models["chances"]) is None


def test_a_model_that_takes_long_is_left_to_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many trees, or many features."""
    monkeypatch.setenv("SAGEMAKER_MULTI_MODEL", "true")
    large = model_of(tmp_path / "large", {"objective": "reg:squarederror"}, rounds=500)
    wide = model_of(tmp_path / "wide", {"objective": "reg:squarederror"}, features=1000)

    for model in (large, wide):
        rows = model.plain_rows()
        assert rows is not None
        assert Shape.of(rows.trees).cost_microsecs > MOST_MICROSECS
        assert own(model) is None


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape(count_bytes=100, features=6, groups=1, trees=25, nodes=1_500, transform=0), True),
        (Shape(count_bytes=100, features=6, groups=1, trees=500, nodes=30_000, transform=0), False),
        (Shape(count_bytes=100, features=1_000, groups=1, trees=1, nodes=3, transform=0), False),
        # Linear models have a weight for each feature and output.
        (Shape(count_bytes=100, features=100, groups=1, trees=0, nodes=0, transform=0), True),
        (Shape(count_bytes=100, features=100, groups=100, trees=0, nodes=0, transform=4), False),
        # Trees like chains are deep: few of them take as long as many that are bushy.
        (Shape(count_bytes=100, features=6, groups=1, trees=1, nodes=1_000_000, transform=0), False),
    ],
)
def test_which_models_are_quick(shape: Shape, expected: bool) -> None:
    assert is_quick(shape) == expected


def test_a_single_model_or_an_output_of_ones_own_is_left_to_the_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their answers have other forms."""
    monkeypatch.delenv("SAGEMAKER_MULTI_MODEL", raising=False)
    assert model_of(tmp_path / "single", OBJECTIVES["number"]).plain_rows() is None
    monkeypatch.setenv("SAGEMAKER_MULTI_MODEL", "true")
    monkeypatch.setenv("SAGEMAKER_INFERENCE_OUTPUT", "probability")
    assert model_of(tmp_path / "selected", OBJECTIVES["chance"]).plain_rows() is None


def test_a_damaged_blob_is_not_used(models: dict[str, PlainModel], caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a worker sends: its memory is given back, and the worker answers."""
    rows = models["number"].plain_rows()
    assert rows is not None
    keeper = RowModels(has_readers=False)
    random = np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(rows.trees)
        damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        assert keeper.adopt(PlainRows(bytes(damaged), b"", ""), "m") is None
    for length in range(0, len(rows.trees), 97):
        assert keeper.adopt(PlainRows(rows.trees[:length], b"", ""), "m") is None
    assert keeper.used_bytes == 0
    assert "model m is answered by its worker: the compiled model is damaged" in caplog.text


def test_memory_counts_until_the_model_is_dropped(models: dict[str, PlainModel]) -> None:
    rows = models["number"].plain_rows()
    assert rows is not None
    keeper = RowModels(has_readers=False)
    kept = [keeper.adopt(rows, "m") for _ in range(100)]

    assert keeper.used_bytes >= 100 * len(rows.trees)
    for model in kept:
        assert model is not None
        keeper.drop(model)
    assert keeper.used_bytes == 0


def test_all_variables_that_the_handler_reads_are_known() -> None:
    """What was compiled under others is not used."""
    text = inspect.getsource(xgboost_handler) + inspect.getsource(ModelSource)

    assert set(re.findall(r'"((?:SAGEMAKER|POLYHOST)_[A-Z_]+)"', text)) == set(VARIABLES)
