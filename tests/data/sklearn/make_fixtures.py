"""
Estimators of older releases, with what those releases predict; run with the Python that has the release:

    python tests/data/sklearn/make_fixtures.py

Written so by 0.23.2 (Python 3.8, numpy 1.19), 1.0.2 (3.9, 1.23), 1.2.2 (3.10, 1.26) and 1.4.2 (3.11, 1.26).
"""

import json
import os
import pickle

import joblib
import numpy as np
import sklearn
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

HERE = os.path.dirname(os.path.abspath(__file__))
NUMBERS = np.arange(24.0).reshape(12, 2) % 7
LABELS = np.arange(12) % 2
WORDS = np.array([["oslo", "a"], ["rome", "b"]] * 6, dtype=object)
MIXED = np.column_stack([NUMBERS[:, :1].astype(object), WORDS])
ROW, WORD_ROW = [[3.0, 5.0]], [["oslo", "b"]]
MIXED_ROW = [[3.0, "oslo", "b"]]

columns = [("numbers", make_pipeline(SimpleImputer(), StandardScaler()), [0]),
           ("words", OneHotEncoder(handle_unknown="ignore"), [1, 2])]  # fmt: skip
MODELS = {
    "linear": (LinearRegression().fit(NUMBERS, NUMBERS @ [1, 10]), ROW),
    "logistic": (make_pipeline(StandardScaler(), LogisticRegression()).fit(NUMBERS, LABELS), ROW),
    "forest": (RandomForestClassifier(2, max_depth=2, random_state=0).fit(NUMBERS, LABELS), ROW),
    "boosting": (GradientBoostingClassifier(n_estimators=1, max_depth=1, random_state=0).fit(NUMBERS, LABELS), ROW),
    "ordinal": (OrdinalEncoder().fit(WORDS), WORD_ROW),
    "mixed": (make_pipeline(ColumnTransformer(columns), LinearRegression()).fit(MIXED, NUMBERS[:, 0]), MIXED_ROW),
}

version = sklearn.__version__
path = os.path.join(HERE, "predictions.json")
known = {}
if os.path.exists(path):
    with open(path) as opened:
        known = json.load(opened)
for name, (model, row) in MODELS.items():
    file = f"{name}-{version}.joblib"
    joblib.dump(model, os.path.join(HERE, file), compress=3)
    answer = model.predict if hasattr(model, "predict") else model.transform
    known[file] = {"row": row, "right": answer(np.array(row, dtype=object if "oslo" in row[0] else float)).tolist()}
if version == "1.2.2":
    for protocol in (0, 2, 4):
        file = f"plain-{protocol}-1.2.2.pkl"
        with open(os.path.join(HERE, file), "wb") as opened:
            pickle.dump(MODELS["ordinal"][0], opened, protocol)
        known[file] = known["ordinal-1.2.2.joblib"]
with open(path, "w") as opened:
    json.dump(known, opened, indent=1, sort_keys=True)
    opened.write("\n")
