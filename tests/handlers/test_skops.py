"""scikit-learn saved by skops: the same answers as by joblib; what skops does not trust is refused, nothing is run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.skops_handler import SkopsHandler
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

ROWS = np.arange(24.0).reshape(12, 2) % 7
LABELS = np.array(["no", "yes"] * 6)
MIXED = np.column_stack([ROWS[:, :1].astype(object), [["oslo"], ["rome"]] * 6])
COLUMNS = ColumnTransformer([("n", StandardScaler(), [0]), ("w", OneHotEncoder(), [1])])
MODELS = {
    "linear": (LinearRegression().fit(ROWS, ROWS @ [1, 10]), ROWS),
    "labels": (make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0)).fit(ROWS, LABELS), ROWS),
    "columns": (make_pipeline(COLUMNS, LinearRegression()).fit(MIXED, ROWS[:, 1]), MIXED),
}


def load(folder: Path) -> SkopsHandler:
    return SkopsHandler.load(ModelSource(folder, "m", {}))


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_the_estimators_own(tmp_path: Path, name: str) -> None:
    estimator, rows = MODELS[name]
    skops.io.dump(estimator, tmp_path / "model.skops")
    answer = load(tmp_path).predict(Request(json.dumps(rows.tolist()).encode(), "application/json"))

    assert json.loads(answer.body) == estimator.predict(rows).tolist()


def test_a_type_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    pipeline = make_pipeline(FunctionTransformer(json.dumps), LinearRegression())
    skops.io.dump(pipeline, tmp_path / "model.skops")

    with pytest.raises(LoadFailed, match=r"model\.skops holds types that skops does not trust: json\.dumps\. Save it"):
        load(tmp_path)


def test_damage_is_said(tmp_path: Path) -> None:
    skops.io.dump(MODELS["linear"][0], tmp_path / "model.skops")
    whole = (tmp_path / "model.skops").read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:-30], whole.replace(b"schema.json", b"schemo.json")):
        (tmp_path / "model.skops").write_bytes(content)
        with pytest.raises(LoadFailed, match=r"^Unable to load model: model\.skops: "):
            load(tmp_path)
    with zipfile.ZipFile(tmp_path / "model.skops", "w") as archive:
        archive.writestr("schema.json", '{"__class__": "system", "__module__": "os", "__loader__": "TypeNode"}')
    with pytest.raises(LoadFailed, match=r"model\.skops"):
        load(tmp_path)


def test_one_file_belongs_in_the_archive(tmp_path: Path) -> None:
    for name in ("a.skops", "b.skops"):
        skops.io.dump(MODELS["linear"][0], tmp_path / name)
    with pytest.raises(LoadFailed, match=r"one \*\.skops file belongs in the archive, found a\.skops, b\.skops"):
        load(tmp_path)
