"""LightGBM's text and JSON: the numbers are LightGBM's own, whatever kind of trees; what is damaged is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from polyhost_handlers.artifacts import recognise
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import BadInput, LoadFailed
from polyhost_handlers.lightgbm_handler import LightGBMHandler
from polyhost_handlers.lightgbm_model import BrokenModel, read

QUIET = {
    "verbose": -1,
    "num_threads": 1,
    "num_leaves": 7,
    "min_data_in_leaf": 3,
    "min_data_per_group": 3,
    "cat_smooth": 1,
}


def rows() -> np.ndarray:
    dice = np.random.default_rng(5)
    matrix = dice.normal(size=(200, 4))
    matrix[:, 2] = dice.integers(0, 70, 200)
    matrix[::7, 1] = np.nan
    matrix[::5, 3] = 0.0
    return matrix


ROWS = rows()
TARGET = np.nan_to_num(ROWS[:, 1]) + (ROWS[:, 2] % 3) * 2 + ROWS[:, 0]
LABELS = (ROWS[:, 2] % 3).astype(int)


def trained(target: np.ndarray = TARGET, **options: Any) -> lightgbm.Booster:
    categorical = options.pop("categorical_feature", [2])
    data = lightgbm.Dataset(ROWS, target, categorical_feature=categorical)
    return lightgbm.train({**QUIET, **options}, data, options.pop("rounds", 5))


BOOSTERS: dict[str, Callable[[], lightgbm.Booster]] = {
    "regression": lambda: trained(objective="regression"),
    "binary": lambda: trained(LABELS == 1, objective="binary"),
    "multiclass": lambda: trained(LABELS, objective="multiclass", num_class=3),
    "multiclassova": lambda: trained(LABELS, objective="multiclassova", num_class=3),
    "poisson": lambda: trained(TARGET - TARGET.min(), objective="poisson"),
    "quantile": lambda: trained(objective="quantile", alpha=0.3),
    "dart": lambda: trained(objective="regression", boosting="dart"),
    "forest": lambda: trained(objective="regression", boosting="rf", bagging_freq=1, bagging_fraction=0.7),
    "no categories": lambda: trained(objective="regression", categorical_feature=[]),
    "zero is missing": lambda: trained(objective="regression", zero_as_missing=True),
    "no missing": lambda: trained(objective="regression", use_missing=False),
    "stumps of one leaf": lambda: trained(objective="regression", min_data_in_leaf=1000),
}


def loaded(folder: Path, text: str, name: str = "model.txt") -> LightGBMHandler:
    (folder / name).write_text(text)
    assert recognise(folder, {}).name == "lightgbm"
    return LightGBMHandler.load(ModelSource(folder, "m", {}))


def asked(model: LightGBMHandler, body: str | bytes, content_type: str = "text/csv", accept: str = "") -> Any:
    body = body if isinstance(body, bytes) else body.encode()
    return model.predict(Request(body, content_type, accept)).body


def as_csv(matrix: np.ndarray) -> str:
    return "\n".join(",".join("" if np.isnan(value) else repr(float(value)) for value in row) for row in matrix)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("case", BOOSTERS)
def test_answers_are_lightgbms_own(tmp_path: Path, case: str, form: str) -> None:
    """To the last bit, in both forms: JSON is one that LightGBM writes and does not read."""
    booster = BOOSTERS[case]()
    text = booster.model_to_string() if form == "text" else json.dumps(booster.dump_model())
    answer = json.loads(asked(loaded(tmp_path, text), as_csv(ROWS)))

    np.testing.assert_array_equal(np.array(answer), booster.predict(ROWS))


def test_linear_trees(tmp_path: Path) -> None:
    """In the text alone: the JSON lacks what they multiply."""
    data = lightgbm.Dataset(ROWS, TARGET, params={"linear_tree": True})
    booster = lightgbm.train({**QUIET, "objective": "regression", "linear_tree": True}, data, 3)
    answer = json.loads(asked(loaded(tmp_path, booster.model_to_string()), as_csv(ROWS)))

    np.testing.assert_array_equal(np.array(answer), booster.predict(ROWS))
    with pytest.raises(BrokenModel, match="linear trees"):
        read(json.dumps(booster.dump_model()))


FRAME = pd.DataFrame(
    {"size": ROWS[:, 0], "city": pd.Categorical([f"c{int(value) % 5}" for value in ROWS[:, 2]]),
     "floor": pd.Categorical(ROWS[:, 2].astype(int) % 4)}
)  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_data_frame_with_categories(tmp_path: Path, form: str) -> None:
    """Its columns have names, and its categories are words; one that was not there is missing, as for LightGBM."""
    booster = lightgbm.train({**QUIET, "objective": "regression"}, lightgbm.Dataset(FRAME, TARGET), 5)
    text = booster.model_to_string() if form == "text" else json.dumps(booster.dump_model())
    model = loaded(tmp_path, text)
    odd = FRAME.head(20).copy()
    odd["city"] = pd.Categorical(["nowhere"] * 5 + list(odd["city"][5:]))
    records = odd.to_dict(orient="records")
    turned = "\n".join(["city,floor,size", *(f"{one['city']},{one['floor']},{one['size']!r}" for one in records)])

    expected = booster.predict(odd)
    np.testing.assert_array_equal(json.loads(asked(model, json.dumps(records), "application/json")), expected)
    np.testing.assert_array_equal(json.loads(asked(model, turned)), expected)
    with pytest.raises(BadInput, match="unknown colour; missing city"):
        asked(model, json.dumps([{"size": 1, "floor": 2, "colour": "red"}]), "application/json")


def test_formats(tmp_path: Path) -> None:
    booster = BOOSTERS["multiclass"]()
    model = loaded(tmp_path, booster.model_to_string())
    expected = booster.predict(ROWS[:2])
    npy = asked(model, json.dumps(ROWS[2:4].tolist()).replace("NaN", "null"), "application/json", "application/x-npy")

    lines = asked(model, as_csv(ROWS[:2]), accept="text/csv").decode().splitlines()
    assert [[float(field) for field in line.split(",")] for line in lines] == expected.tolist()
    assert npy.startswith(b"\x93NUMPY")
    with pytest.raises(BadInput, match="Each row has 3 features, the model was trained on 4"):
        asked(model, "1,2,3")


# Damage


def broken(pattern: str, new: str) -> str:
    text, count = re.subn(pattern, new, BOOSTERS["regression"]().model_to_string(), count=1, flags=re.MULTILINE)
    assert count, pattern
    return text


DAMAGED = [
    (r"^split_feature=\d+", "split_feature=99", "asks for a feature that is not there"),
    (r"^split_feature=\d+", "split_feature=-1", "asks for a feature that is not there"),
    (r"^split_feature=\d+", "split_feature=99999999999", "not whole numbers"),
    (r"^left_child=\S+", "left_child=0", "leads nowhere"),
    (r"^left_child=\S+", "left_child=500", "leads nowhere"),
    (r"^right_child=\S+", "right_child=-500", "leads nowhere"),
    (r"^left_child=.*", "left_child=", "has not the"),
    (r"^leaf_value=\S+ ", "leaf_value=", "leaves that it says"),
    (r"^num_leaves=\d+", "num_leaves=100000", "leaves that it says"),
    (r"^num_leaves=\d+", "num_leaves=x", "its num_leaves is 'x'"),
    (r"^cat_boundaries=0 \d+", "cat_boundaries=0 1000000", "categories"),
    (r"^num_cat=\d+", "num_cat=0", "asks for categories"),
    (r"^num_class=1", "num_class=5", "are not those of 5 classes"),
    (r"^max_feature_idx=3", "max_feature_idx=30", "it says 31 features"),
    (r"^max_feature_idx=3", "max_feature_idx=99999999999", "its max_feature_idx"),
    (r"^objective=regression", "objective=multiclass num_class:9", "are not those of 1 classes"),
]


@pytest.mark.parametrize(("pattern", "new", "words"), DAMAGED)
def test_what_would_lead_out_of_the_models_memory_is_refused(
    tmp_path: Path, pattern: str, new: str, words: str
) -> None:
    with pytest.raises(LoadFailed, match=re.escape(words)) as raised:
        loaded(tmp_path, broken(pattern, new))
    assert raised.value.message.startswith("Unable to load model: model.txt is damaged: ")


def test_the_places_of_trees_are_not_believed(tmp_path: Path) -> None:
    """LightGBM would begin to read where this line says."""
    booster = BOOSTERS["regression"]()
    text = re.sub(r"^tree_sizes=\d+", "tree_sizes=99999999", booster.model_to_string(), flags=re.MULTILINE)
    answer = json.loads(asked(loaded(tmp_path, text), as_csv(ROWS)))

    np.testing.assert_array_equal(np.array(answer), booster.predict(ROWS))


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_file_that_is_cut_off(tmp_path: Path, form: str) -> None:
    booster = BOOSTERS["regression"]()
    text = booster.model_to_string() if form == "text" else json.dumps(booster.dump_model())
    for share in (0.05, 0.2, 0.3):
        with pytest.raises(LoadFailed, match=r"^Unable to load model: model.txt"):
            loaded(tmp_path, text[: int(len(text) * share)])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"left_child": {', '"left_chil": {'), ('"num_leaves": ', '"num_leaves": 1'),
        ('"leaf_index": 0', '"leaf_index": 3'),
        ('"missing_type": "None"', '"missing_type": "?"'), ('"tree_info": [', '"tree_info": [1, '),
        ('"Column_0", ', '"Column_0\\nTree=0\\n", '), ('"objective": "', '"objective": "\\nTree=0\\n'),
    ],
)  # fmt: skip
def test_damaged_json(tmp_path: Path, old: str, new: str) -> None:
    text = json.dumps(BOOSTERS["regression"]().dump_model())
    assert old in text
    with pytest.raises(LoadFailed, match="is damaged"):
        loaded(tmp_path, text.replace(old, new, 1))


@pytest.mark.parametrize("categories", ["-5", "1||x", "9999999999", ""])
def test_categories_in_json_that_lightgbm_has_not_written(tmp_path: Path, categories: str) -> None:
    text = json.dumps(BOOSTERS["regression"]().dump_model())
    damaged, count = re.subn(r'"threshold": "[\d|]+"', f'"threshold": "{categories}"', text)
    assert count
    with pytest.raises(LoadFailed, match="is damaged"):
        loaded(tmp_path, damaged)
