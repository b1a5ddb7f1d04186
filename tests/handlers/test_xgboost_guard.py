"""Models of newer XGBoost releases in scripts and in scikit-learn's pickles: refused there, never predicted wrong."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import xgboost
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.xgboost_pickle import pickled_booster
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from handlers.calling import Model, csv
from handlers.test_xgboost_releases import release

NEWER = r"the model is of XGBoost 3\.2\.0, newer than XGBoost 3\.0\.\d+ here, which would predict wrong values"
SCRIPT = """
import pickle
from pathlib import Path
import numpy as np
import xgboost

def input_fn(body, content_type):
    return np.genfromtxt(body.splitlines(), delimiter=",")

def model_fn(model_dir):
    path = Path(model_dir) / "model"
    {load}

def predict_fn(data, model):
    return getattr(model, "predict")(xgboost.DMatrix(data) if isinstance(model, xgboost.Booster) else data)
"""
LOADS = {
    "load_model": ("json", "booster = xgboost.Booster(); booster.load_model(path); return booster"),
    "constructor": ("ubj", "return xgboost.Booster(model_file=str(path))"),
    "memory": ("ubj", "return xgboost.Booster(model_file=bytearray(path.read_bytes()))"),
    "wrapper": ("json", "model = xgboost.XGBRegressor(); model.load_model(path); return model"),
    "pickle": ("pkl", "return pickle.loads(path.read_bytes())"),
}


def pipeline(version: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pipeline whose booster pickles as one of `version`'s."""
    handle = pickled_booster(release(version).files["reg-squarederror.pkl"])
    rows = np.random.default_rng(0).normal(size=(20, 4))
    model = make_pipeline(StandardScaler(), xgboost.XGBRegressor(n_estimators=1, n_jobs=1)).fit(rows, rows[:, 0])
    monkeypatch.setattr(xgboost.Booster, "__getstate__", lambda _: {"handle": bytearray(handle)})
    return model


@pytest.mark.parametrize("compress", [0, 3])
def test_a_pipeline_with_a_newer_booster(
    compress: int, load: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joblib.dump(pipeline("3.2.0", monkeypatch), tmp_path / "model.joblib", compress=compress)
    with pytest.raises(LoadFailed, match=NEWER):
        load("auto", tmp_path)


def test_a_pipeline_with_a_booster_that_can_be_read(
    load: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joblib.dump(pipeline("3.0.5", monkeypatch), tmp_path / "model.joblib")
    assert load("auto", tmp_path).ask(b"1,2,3,4").status == 200


@pytest.mark.parametrize("way", LOADS)
@pytest.mark.usefixtures("restored_process")
def test_a_script_that_loads_a_newer_model(way: str, load: Callable[..., Model], tmp_path: Path) -> None:
    form, line = LOADS[way]
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(SCRIPT.format(load=line))
    written = release("3.0.5")
    (tmp_path / "model").write_bytes(written.files[f"reg-squarederror.{form}"])
    answer = load("script_handler", tmp_path).ask(csv(written.rows[1:]), "text/csv", "application/json")
    np.testing.assert_array_equal(
        np.array(answer.json(), np.float32), np.array(written.predictions["reg-squarederror.json"][1:], np.float32)
    )

    (tmp_path / "model").write_bytes(release("3.2.0").files[f"reg-squarederror.{form}"])
    with pytest.raises(LoadFailed, match=f"model_fn of inference.py failed: XGBoostError: {NEWER}"):
        load("script_handler", tmp_path)


def test_xgboost_is_not_imported_for_it_and_is_watched_once_it_is(tmp_path: Path) -> None:
    """In a worker that has no XGBoost yet; what XGBoost cannot read it says itself."""
    (tmp_path / "model.json").write_bytes(release("3.2.0").files["reg-squarederror.json"])
    (tmp_path / "model.ubj").write_bytes(b"{")
    program = """
import sys
from polyhost_handlers.xgboost_guard import refuse_newer_models
refuse_newer_models(); refuse_newer_models()
assert "xgboost" not in sys.modules
import xgboost
refuse_newer_models()
for name in ("model.json", "model.ubj", "none.json"):
    try:
        xgboost.Booster(model_file=f"{sys.argv[1]}/{name}")
    except xgboost.core.XGBoostError as error:
        print(str(error).splitlines()[0])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    newer, broken, missing = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert newer.startswith("the model is of XGBoost 3.2.0")
    assert "the model is of" not in broken + missing


def test_a_booster_pickles_as_before(tmp_path: Path) -> None:
    """A model of the installed release, through the guard."""
    rows = np.random.default_rng(0).normal(size=(20, 4))
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, rows[:, 0]), 2)
    again = pickle.loads(pickle.dumps(booster))
    assert again.predict(xgboost.DMatrix(rows)).tolist() == booster.predict(xgboost.DMatrix(rows)).tolist()
