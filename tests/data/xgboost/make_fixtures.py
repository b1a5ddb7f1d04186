"""Write the XGBoost artifacts that the installed xgboost can write.

Usage: python make_fixtures.py OUT_DIR

Run it once under each xgboost version listed in WRITERS; every run adds its
files to OUT_DIR and merges its entries in OUT_DIR/expected.json.  Needs only
xgboost and numpy, and scikit-learn for the files named *-sklearn*.  Runs on
Python 2.7 and on 3.6 or later.
"""

from __future__ import print_function

import json
import os
import pickle
import platform
import sys

import numpy as np
import xgboost as xgb

VERSION = xgb.__version__
MAJOR_MINOR = tuple(int(part) for part in VERSION.split(".")[:2])
LINEAR = "reg:squarederror" if MAJOR_MINOR >= (0, 83) else "reg:linear"
LOGISTIC = "binary:logistic"
SEED = 20
ROUNDS = 5

# Three rows to predict; None is a missing value (NaN).
ROWS = [
    [0.125, -0.75, 1.5, 0.25],
    [-1.25, None, 0.5, -0.5],
    [0.875, 0.5, -1.0, 2.0],
]


def training_data():
    rng = np.random.RandomState(SEED)
    features = np.round(rng.uniform(-2.0, 2.0, size=(60, 4)), 2)
    target = 3.0 * features[:, 0] - 2.0 * features[:, 1] + features[:, 2] ** 2
    features[rng.uniform(size=features.shape) < 0.05] = np.nan
    return features, np.round(target, 2)


def labels(target):
    return (target > 1.5).astype(int)


def rows_matrix():
    return np.array([[np.nan if v is None else v for v in row] for row in ROWS])


def train(objective):
    features, target = training_data()
    if objective == LOGISTIC:
        target = labels(target)
    params = {"objective": objective, "max_depth": 2, "eta": 0.5, "seed": SEED, "nthread": 1}
    return xgb.train(params, xgb.DMatrix(features, label=target), num_boost_round=ROUNDS)


def train_sklearn(objective):
    features, target = training_data()
    options = {
        "n_estimators": ROUNDS,
        "max_depth": 2,
        "learning_rate": 0.5,
        "n_jobs": 1,
        "random_state": SEED,
        "objective": objective,
    }
    if objective == LOGISTIC:
        return xgb.XGBClassifier(**options).fit(features, labels(target))
    return xgb.XGBRegressor(**options).fit(features, target)


def save_model(model, path):
    model.save_model(path)


def save_pickle(model, path):
    with open(path, "wb") as stream:
        pickle.dump(model, stream)  # the default protocol of this Python


# (xgboost version, Python major) -> [(file, objective, trainer, saver)]
WRITERS = {
    ((0, 72), 2): [
        ("pickle-0.72-python2.pkl", LINEAR, train, save_pickle),
    ],
    ((0, 72), 3): [
        ("pickle-0.72.pkl", LINEAR, train, save_pickle),
    ],
    ((0, 90), 3): [
        ("old-binary-0.90.model", LINEAR, train, save_model),
        ("old-binary-0.90-logistic.model", LOGISTIC, train, save_model),
        ("pickle-0.90.pkl", LINEAR, train, save_pickle),
        ("pickle-0.90-sklearn.pkl", LINEAR, train_sklearn, save_pickle),
    ],
    ((1, 0), 3): [
        ("pickle-1.0.pkl", LINEAR, train, save_pickle),
        ("pickle-1.0-sklearn.pkl", LOGISTIC, train_sklearn, save_pickle),
    ],
    ((1, 3), 3): [
        ("json-1.3.json", LINEAR, train, save_model),
        ("pickle-1.3.pkl", LINEAR, train, save_pickle),
    ],
    ((1, 7), 3): [
        ("old-binary-1.7.deprecated.model", LINEAR, train, save_model),
        ("json-1.7.json", LINEAR, train, save_model),
        ("ubj-1.7.ubj", LOGISTIC, train, save_model),
        ("pickle-1.7.pkl", LINEAR, train, save_pickle),
    ],
    ((3, 0), 3): [
        ("json-3.0.json", LINEAR, train, save_model),
        ("ubj-3.0.ubj", LOGISTIC, train, save_model),
        ("pickle-3.0.pkl", LINEAR, train, save_pickle),
        ("pickle-3.0-sklearn.pkl", LOGISTIC, train_sklearn, save_pickle),
    ],
}


def predict(model):
    """What the booster predicts: of a classifier, the probability of class 1."""
    if hasattr(model, "predict_proba"):
        return model.predict_proba(rows_matrix())[:, 1]
    if hasattr(model, "get_booster"):
        return model.predict(rows_matrix())
    return model.predict(xgb.DMatrix(rows_matrix()))


def merge(path, entries):
    merged = {}
    if os.path.exists(path):
        with open(path) as stream:
            merged = json.load(stream)
    merged.update(entries)
    lines = []
    for name in sorted(merged):
        fields = [
            "    %s: %s" % (json.dumps(key), json.dumps(merged[name][key]))
            for key in ("objective", "written_by", "rows", "predictions")
        ]
        lines.append("  %s: {\n%s\n  }" % (json.dumps(name), ",\n".join(fields)))
    with open(path, "w") as stream:
        stream.write("{\n%s\n}\n" % ",\n".join(lines))


def main(out_dir):
    writers = WRITERS.get((MAJOR_MINOR, sys.version_info[0]))
    if writers is None:
        sys.exit("no fixture is written by xgboost %s on Python %s" % (VERSION, platform.python_version()))
    entries = {}
    for name, objective, trainer, saver in writers:
        model = trainer(objective)
        saver(model, os.path.join(out_dir, name))
        entries[name] = {
            "objective": objective,
            "written_by": "xgboost %s on Python %s" % (VERSION, platform.python_version()),
            "rows": ROWS,
            "predictions": [float("%.9g" % value) for value in predict(model)],
        }
        print("wrote", name)
    merge(os.path.join(out_dir, "expected.json"), entries)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
