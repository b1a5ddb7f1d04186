"""Asks CatBoost's handler in CatBoost's own environment: `python catboost_cases.py FOLDER`; the last line is JSON."""

import json
import subprocess
import sys
from pathlib import Path

import catboost
import numpy as np
from polyhost_handlers.artifacts import recognise
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.catboost_handler import CatBoostHandler

DICE = np.random.default_rng(3)
ROWS = DICE.normal(size=(80, 3))
ROWS[::9, 1] = np.nan
TARGET = ROWS[:, 0] * 2 + np.nan_to_num(ROWS[:, 1])
LABELS = np.digitize(TARGET, [-1, 1])
CITIES = np.array(["oslo", "rome", "1"])[DICE.integers(0, 3, 80)]
MIXED = [[float(row[0]), str(city)] for row, city in zip(ROWS, CITIES, strict=True)]
OPTIONS = {"iterations": 8, "depth": 3, "verbose": 0, "allow_writing_files": False, "thread_count": 1, "random_seed": 1}
LOAD = """
import sys
from pathlib import Path
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.catboost_handler import CatBoostHandler
from polyhost_handlers.errors import HandlerError
try:
    CatBoostHandler.load(ModelSource(Path(sys.argv[1]), "m", {})).predict(Request(b"1,2,3"))
except HandlerError as error:
    print(error.message)
"""


def fitted(kind, target, rows=ROWS, **options):
    return kind(**OPTIONS, **options).fit(rows, target)


MODELS = {
    "regression": fitted(catboost.CatBoostRegressor, TARGET),
    "quantile": fitted(catboost.CatBoostRegressor, TARGET, loss_function="Quantile:alpha=0.3"),
    "poisson": fitted(catboost.CatBoostRegressor, TARGET - TARGET.min(), loss_function="Poisson"),
    "several targets": fitted(catboost.CatBoostRegressor, np.stack([TARGET, -TARGET], 1), loss_function="MultiRMSE"),
    "two classes": fitted(catboost.CatBoostClassifier, LABELS > 0),
    "classes": fitted(catboost.CatBoostClassifier, LABELS),
    "texts": fitted(catboost.CatBoostClassifier, np.array(["no", "yes"])[(LABELS > 0).astype(int)]),
    "one against all": fitted(catboost.CatBoostClassifier, LABELS, loss_function="MultiClassOneVsAll"),
}


def loaded(folder, model, name="model.cbm"):
    folder.mkdir()
    model.save_model(str(folder / "model.cbm"))
    (folder / "model.cbm").rename(folder / name)
    assert recognise(folder, {}).name == "catboost"
    return CatBoostHandler.load(ModelSource(folder, "m", {}))


def asked(model, body, content_type="application/json"):
    return json.loads(model.predict(Request(body.encode(), content_type)).body)


def expected(model, rows):
    if not hasattr(model, "predict_proba"):
        return model.predict(rows).tolist()
    every = model.predict_proba(rows)
    return (every[:, 1] if every.shape[1] == 2 else every).tolist()


def main(folder):
    results = {}
    body = json.dumps(ROWS.tolist()).replace("NaN", "null")
    for number, (name, model) in enumerate(MODELS.items()):
        answer = asked(loaded(folder / str(number), model, ("model.cbm", "any.bin")[number % 2]), body)
        results[name] = [answer, expected(model, ROWS)]
    words = catboost.CatBoostRegressor(**OPTIONS).fit(catboost.Pool(MIXED, TARGET, cat_features=[1]))
    results["words"] = [asked(loaded(folder / "words", words), json.dumps(MIXED)), expected(words, MIXED)]
    lines = "\n".join(f"{number!r},{city}" for number, city in MIXED)
    as_csv = CatBoostHandler.load(ModelSource(folder / "words", "m", {}))
    results["words in CSV"] = [asked(as_csv, lines, "text/csv"), expected(words, MIXED)]
    whole = (folder / "0" / "model.cbm").read_bytes()
    damaged = folder / "damaged"
    damaged.mkdir()
    for step in range(12):
        place = len(whole) * step // 12
        (damaged / "model.cbm").write_bytes(
            whole[:place] if step % 2 else whole[:place] + b"\xff" * 8 + whole[place + 8 :]
        )
        done = subprocess.run([sys.executable, "-c", LOAD, damaged], capture_output=True, text=True, check=False)
        results[f"damaged {step}"] = [done.returncode, done.stdout, done.stderr[-300:]]
    sys.stdout.write(json.dumps(results))


main(Path(sys.argv[1]))
