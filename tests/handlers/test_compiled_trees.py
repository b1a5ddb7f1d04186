"""Compiled trees: XGBoost's own predictions to the last bit, any bytes of CSV as Python reads them, no damage used."""

from __future__ import annotations

import json
import math
import platform
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polyhost_handlers import xgboost_predict
from polyhost_handlers.compiled.library import DamagedBlob, library
from polyhost_handlers.compiled.rows import Way
from polyhost_handlers.compiled.trees import CompiledTrees, Description, Nodes, Transform, blob_of, sealed
from polyhost_handlers.xgboost_artifact import load_booster
from polyhost_handlers.xgboost_compiler import MOST_FEATURES, NotCompiled, compiled_blob
from polyhost_handlers.xgboost_predict import CompiledPredictor, TreePredictor, predictor_of, rounds_of
from scipy.sparse import csr_matrix
from support.forms import by_form, examples

pytestmark = pytest.mark.skipif(library is None, reason="the library in C was not built: there was no compiler")

# What is predicted, by objective; the labels that it can be trained with.
OBJECTIVES = {
    "reg:squarederror": "any", "reg:squaredlogerror": "positive", "reg:pseudohubererror": "any",
    "reg:absoluteerror": "any", "reg:quantileerror": "any", "reg:logistic": "share", "binary:logistic": "truth",
    "binary:logitraw": "truth", "binary:hinge": "truth", "count:poisson": "positive", "reg:gamma": "positive",
    "reg:tweedie": "positive", "survival:cox": "positive", "survival:aft": "positive", "multi:softprob": "class",
    "multi:softmax": "class", "rank:pairwise": "class", "rank:ndcg": "class", "rank:map": "truth",
}  # fmt: skip
# They make new leaves of what was learned.
OF_TREES_ALONE = ("reg:absoluteerror", "reg:quantileerror")
OF_ANY_BOOSTER = ("objective", "booster", "nthread", "num_class")
NUMBER = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map("{:.18e}".format),
    st.integers(-(10**40), 10**40).map(str),
    st.from_regex(r"\A[+-]?[0-9]{0,25}\.?[0-9]{0,25}([eE][+-]?[0-9]{1,3})?\Z"),
)


def trained(objective: str, booster: str, seed: int) -> tuple[xgboost.Booster, np.ndarray[Any, Any]]:
    """A booster of this kind, and rows to ask it: missing, huge, tiny, and those that it was trained with (ties)."""
    random = np.random.default_rng(seed)
    features = int(random.integers(1, 9))
    has_categories = booster != "gblinear" and bool(random.random() < 0.3)
    rows = random.normal(size=(120, features)).astype(np.float32)
    rows[random.random(rows.shape) < 0.15] = math.nan
    types = ["q"] * features
    if has_categories:
        rows[:, 0], types[0] = random.integers(0, 40, size=len(rows)), "c"
    score = np.nan_to_num(rows[:, -1]) + np.nan_to_num(rows[:, 0]) % 3 + random.normal(size=len(rows)) * 0.3
    labels = {
        "any": score, "positive": np.abs(score) + 0.01, "share": 1 / (1 + np.exp(-score)), "truth": score > 1,
        "class": random.integers(0, 4, size=len(rows)),
    }[OBJECTIVES[objective]]  # fmt: skip
    matrix = xgboost.DMatrix(rows, labels, feature_types=types, enable_categorical=has_categories)
    parameters = {"objective": objective, "booster": booster, "max_depth": int(random.integers(1, 7)), "nthread": 1}
    if objective == "survival:aft":
        matrix.set_float_info("label_lower_bound", labels)
        matrix.set_float_info("label_upper_bound", labels + 1)
    if objective.startswith("rank"):
        matrix.set_group([20] * 6)
    if objective.startswith("multi"):
        parameters["num_class"] = 4
    if objective == "reg:quantileerror":
        parameters["quantile_alpha"] = [[0.1, 0.5, 0.9], 0.4][seed % 2]
    elif objective != "reg:absoluteerror" and random.random() < 0.3:
        parameters |= {"num_parallel_tree": 3, "subsample": 0.7}
    if booster == "dart":
        parameters["rate_drop"] = 0.3
    if booster == "gblinear":
        parameters = {name: value for name, value in parameters.items() if name in OF_ANY_BOOSTER}
    asked = random.normal(size=(by_form(short=200, long=2000), features)) * 10.0 ** random.integers(-40, 30)
    asked[random.random(asked.shape) < 0.2] = math.nan
    if has_categories:
        asked[:, 0] = random.integers(0, 60, size=len(asked))
    asked = np.concatenate([rows, np.float32(asked)]).astype(np.float32)
    return xgboost.train(parameters, matrix, int(random.integers(1, 12))), asked


def bits(values: np.ndarray[Any, Any]) -> list[int]:
    return np.asarray(values, np.float32).view(np.uint32).ravel().tolist()


def loaded(booster: xgboost.Booster, folder: Path) -> Any:
    booster.save_model(folder / "model.ubj")
    return load_booster(folder / "model.ubj")


@pytest.mark.parametrize("booster", ["gbtree", "dart"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_answers_are_xgboosts_to_the_last_bit(objective: str, booster: str, tmp_path: Path) -> None:
    for seed in range(by_form(short=2, long=24)):
        model, rows = trained(objective, booster, seed)
        predictor = predictor_of(loaded(model, tmp_path))
        assert isinstance(predictor, CompiledPredictor)
        expected = model.predict(xgboost.DMatrix(rows, feature_types=model.feature_types), validate_features=False)
        got = predictor.predict(rows)
        assert got.shape == expected.shape
        assert bits(got) == bits(expected), (objective, booster, seed)
        present = np.nonzero(~np.isnan(rows))
        sparse = csr_matrix((rows[present], present), shape=rows.shape)
        assert bits(predictor.predict(sparse)) == bits(expected), (objective, booster, seed)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="they are compiled there alone")
@pytest.mark.parametrize("objective", [objective for objective in OBJECTIVES if objective not in OF_TREES_ALONE])
def test_answers_of_linear_boosters_are_xgboosts_to_the_last_bit(objective: str, tmp_path: Path) -> None:
    for seed in range(by_form(short=3, long=24)):
        model, rows = trained(objective, "gblinear", seed)
        predictor = predictor_of(loaded(model, tmp_path))
        assert isinstance(predictor, CompiledPredictor), predictor.way
        expected = model.predict(xgboost.DMatrix(rows), validate_features=False)
        got = predictor.predict(rows)
        assert got.shape == expected.shape
        assert bits(got) == bits(expected), (objective, seed)
        present = np.nonzero(~np.isnan(rows))
        sparse = csr_matrix((rows[present], present), shape=rows.shape)
        assert bits(predictor.predict(sparse)) == bits(expected), (objective, seed)
        if got.ndim == 1 and math.isfinite(value := float(got[0])) and not np.isnan(rows[0]).any():
            assert predictor.predict_csv_row(",".join(map(repr, rows[0].tolist())).encode()) == value


def test_a_linear_booster_without_rounds_stays_with_xgboost(tmp_path: Path) -> None:
    matrix = xgboost.DMatrix(np.ones((4, 2)), np.ones(4))
    booster = loaded(xgboost.train({"booster": "gblinear"}, matrix, 0), tmp_path)
    with pytest.raises(NotCompiled, match="weights"):
        compiled_blob(booster, rounds_of(booster))


@pytest.mark.parametrize("booster", ["gbtree", "dart"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_artifact_says_the_same_as_xgboost_when_it_writes_it_anew(
    objective: str, booster: str, tmp_path: Path
) -> None:
    for seed in range(by_form(short=3, long=12)):
        model, _ = trained(objective, booster, seed)
        by_artifact = loaded(model, tmp_path)
        # What splits by categories is compiled of what XGBoost writes; categories that no tree uses make no difference.
        assert by_artifact.written is not None or "c" in (model.feature_types or ())
        blob = compiled_blob(by_artifact, (0, 0))
        by_artifact.written = None
        assert blob.tobytes() == compiled_blob(by_artifact, (0, 0)).tobytes()


def step(threshold: float) -> CompiledTrees:
    """One feature: 0 below the threshold, 1 from there on."""
    nodes = Nodes(
        np.array([3]), np.array([1, -1, -1]), np.array([2, -1, -1]), np.zeros(3, np.int32),
        np.array([threshold, 0, 1], np.float32), np.zeros(3, np.uint8), {},
    )  # fmt: skip
    starts = np.zeros(1, np.float32)
    return CompiledTrees(sealed(blob_of(nodes, Description(1, np.array([0]), None, starts, Transform.IDENTITY))))


@settings(max_examples=examples(200))
@given(NUMBER)
@example("3.402823364973241e+38")
def test_numbers_of_csv_are_pythons(text: str) -> None:
    """The float32 of the nearest double, found between two thresholds; the rest is for another reader."""
    try:
        with np.errstate(over="ignore"):
            expected = np.float32(float(text))
    except ValueError:
        expected = np.float32(math.inf)
    if math.isinf(expected) or len(text) > 63:
        assert step(0).predict_csv_row(text.encode()) in (None, float(expected >= 0))
        return
    assert step(expected).predict_csv_row(text.encode()) == 1
    with np.errstate(over="ignore"):  # infinity comes after the largest one
        next_one = np.nextafter(expected, np.float32(math.inf))
    assert step(next_one).predict_csv_row(text.encode()) == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"\n", b",", b"1,", b"1,2", b" 1", b"1 ", b"1\n\n", b"1\r\n", b"nan", b"inf", b"0x1", b"1_0", b"1e", b"+",
     b".", b"--1", b"1.2.3", b"1e5.0", "\uff11".encode(), b"1\0", b"1e39", b"9" * 400],
)  # fmt: skip
def test_what_is_no_plain_row_is_left_to_others(body: bytes) -> None:
    assert step(0).predict_csv_row(body) is None


@pytest.mark.parametrize("kind", ["gbtree", "dart"])
def test_damaged_blobs_are_refused(kind: str, tmp_path: Path) -> None:
    model, _ = trained("multi:softprob", kind, 3)
    booster = loaded(model, tmp_path)
    blob = compiled_blob(booster, rounds_of(booster))
    for size in range(0, len(blob), 7):
        with pytest.raises(DamagedBlob):
            CompiledTrees(blob[:size].copy() if size else np.zeros(1, np.uint8))
    chosen = random.Random(5)
    for _ in range(by_form(short=300, long=8_000)):
        damaged = blob.copy()
        damaged[chosen.randrange(len(blob))] ^= 1 << chosen.randrange(8)
        with pytest.raises(DamagedBlob):
            CompiledTrees(damaged)


def test_blobs_of_malice_do_not_leave_their_bytes(tmp_path: Path) -> None:
    """With a right checksum too: what is checked is every place that a prediction can visit."""
    model, rows = trained("reg:squarederror", "gbtree", 8)
    booster = loaded(model, tmp_path)
    np.save(tmp_path / "blob.npy", compiled_blob(booster, rounds_of(booster)))
    np.save(tmp_path / "rows.npy", rows[:20])
    done = subprocess.run(
        [sys.executable, "-c", _MALICE, str(tmp_path), str(by_form(short=2000, long=40_000))],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    refused, used = json.loads(done.stdout)
    assert refused > 0
    assert used > 0


_MALICE = """
import json, random, sys
import numpy as np
from polyhost_handlers.compiled.library import DamagedBlob
from polyhost_handlers.compiled.trees import CompiledTrees, sealed
blob, rows = np.load(sys.argv[1] + "/blob.npy"), np.load(sys.argv[1] + "/rows.npy")
chosen, refused, used = random.Random(7), 0, 0
for _ in range(int(sys.argv[2])):
    other = blob.copy()
    for _ in range(chosen.randint(1, 3)):
        other[chosen.randrange(8, len(blob))] = chosen.choice([0, 1, 127, 128, 255, chosen.randrange(256)])
    try:
        model = CompiledTrees(sealed(other))
    except DamagedBlob:
        refused += 1
        continue
    used += 1
    if model.features == rows.shape[1]:
        model.predict(rows)
print(json.dumps([refused, used]))
"""


def test_a_compiled_model_that_differs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = trained("reg:squarederror", "gbtree", 8)

    def one_leaf_off(booster: Any, rounds: tuple[int, int]) -> Any:
        blob = compiled_blob(booster, rounds)
        leaf = blob[64:].view("<u4")[:1]  # the base score's bits
        leaf ^= 1
        return sealed(blob)

    monkeypatch.setattr(xgboost_predict, "compiled_blob", one_leaf_off)
    predictor = predictor_of(loaded(model, tmp_path))
    assert isinstance(predictor, TreePredictor)
    assert predictor.way == Way(False, "what was compiled differs from XGBoost", has_differed=True)
    assert bits(predictor.predict(rows)) == bits(model.predict(xgboost.DMatrix(rows), validate_features=False))


def test_children_apart_stay_with_xgboost(tmp_path: Path) -> None:
    """XGBoost itself goes to the node behind the left child, whatever the right child is."""
    model, _ = trained("reg:squarederror", "gbtree", 1)
    document = json.loads(model.save_raw("json"))
    tree = document["learner"]["gradient_booster"]["model"]["trees"][0]
    split = next(i for i, left in enumerate(tree["left_children"]) if left >= 0)
    left, right = tree["left_children"], tree["right_children"]
    left[split], right[split] = right[split], left[split]
    (tmp_path / "model.json").write_text(json.dumps(document))
    booster = load_booster(tmp_path / "model.json")
    with pytest.raises(NotCompiled, match="side by side"):
        compiled_blob(booster, rounds_of(booster))


def test_without_the_library_xgboost_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = trained("binary:logistic", "gbtree", 2)
    booster = loaded(model, tmp_path)
    compiled = predictor_of(booster).predict(rows)
    monkeypatch.setattr(xgboost_predict, "library", None)
    by_xgboost = predictor_of(booster)
    assert isinstance(by_xgboost, TreePredictor)
    assert bits(by_xgboost.predict(rows)) == bits(compiled)


@pytest.mark.parametrize(("features", "kind"), [(MOST_FEATURES, CompiledPredictor), (MOST_FEATURES + 1, TreePredictor)])
def test_a_model_of_very_many_features_stays_with_xgboost(features: int, kind: type, tmp_path: Path) -> None:
    booster = load_booster(saved(wide(features), tmp_path))
    predictor = predictor_of(booster)
    assert type(predictor) is kind
    rows = csr_matrix(([3.0, -1.0], ([0, 1], [features - 1, features - 1])), shape=(3, features))
    assert predictor.predict(rows).tolist() == booster.predict(xgboost.DMatrix(rows)).tolist()


def test_a_load_takes_no_memory_for_features_that_are_only_named(tmp_path: Path) -> None:
    """A row of these would take 12 MB, and its answer comes from one of them."""
    document = json.loads(wide(10).save_raw("json"))
    document["learner"]["learner_model_param"]["num_feature"] = "3000000"
    file = tmp_path / "xgboost-model"
    file.write_text(json.dumps(document))
    tracemalloc.start()
    try:
        predictor_of(load_booster(file))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10 * 1024**2


def wide(features: int) -> xgboost.Booster:
    """A booster whose answer comes from its last feature alone."""
    column = np.array([-1.0, 3.0] * 20)
    rows = csr_matrix((column, (np.arange(40), np.full(40, features - 1))), shape=(40, features))
    return xgboost.train({"max_depth": 2, "nthread": 1, "tree_method": "exact"}, xgboost.DMatrix(rows, column), 3)


def saved(booster: xgboost.Booster, folder: Path) -> Path:
    file = folder / "xgboost-model.ubj"
    booster.save_model(file)
    return file
