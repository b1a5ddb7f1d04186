"""
Write OUT_DIR/VERSION.tar.xz: what one release of XGBoost writes, and what that release predicts with it.

Usage: python make_releases.py OUT_DIR

Every objective, booster and format that the installed release has, pickles and joblib's dumps with each of its
compressions. The archive's `expected.json` holds the rows (null is a missing value) and, for each file, the
predictions of the release itself. Needs numpy, scikit-learn and joblib, and pandas where the release keeps the names
of categories. Runs on Python 3.6 and later.
"""

import io
import json
import pickle
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import joblib
import numpy as np
import xgboost as xgb

warnings.simplefilter("ignore")
VERSION = xgb.__version__
RELEASE = tuple(int(part) for part in VERSION.split(".")[:2])
ROUNDS = 3
RANDOM = np.random.RandomState(20)
FEATURES = np.round(RANDOM.uniform(-2.0, 2.0, size=(90, 4)), 2)
SCORE = 3.0 * FEATURES[:, 0] - 2.0 * FEATURES[:, 1] + FEATURES[:, 2] ** 2
FEATURES[RANDOM.uniform(size=FEATURES.shape) < 0.05] = np.nan
REAL = np.round(SCORE + 4.0, 2)
POSITIVE = np.round(np.abs(SCORE) + 0.25, 2)
COUNTS = np.round(np.abs(SCORE))
BINARY = (SCORE > 1.5).astype(int)
CLASSES = np.digitize(SCORE, [-1.0, 3.0])
# Categories in the first feature.
CATEGORIES = np.column_stack([RANDOM.randint(0, 9, size=90), FEATURES[:, 1:]])
CATEGORY_TARGET = np.round(np.array([3.0, -1, 4, -1, 5, -9, 2, 6, -5])[CATEGORIES[:, 0].astype(int)] + REAL, 2)
ROWS = [
    [0.125, -0.75, 1.5, 0.25],
    [-1.25, None, 0.5, -0.5],
    [0.875, 0.5, -1.0, 2.0],
    [3.0, 1.0, 0.0, None],
    [5.0, -1.9, 1.9, 0.1],
    [1.0, 1.9, -0.3, 1.3],
]

BASE = {"max_depth": 2, "eta": 0.5, "seed": 20, "nthread": 1}
LINEAR_BASE = {"eta": 0.5, "seed": 20, "nthread": 1}  # gblinear warns of a depth
OBJECTIVES = {
    "reg:linear": (REAL, {}, (0, 72)),
    "reg:squarederror": (REAL, {}, (0, 83)),
    "reg:squaredlogerror": (POSITIVE, {}, (1, 0)),
    "reg:pseudohubererror": (REAL, {"huber_slope": 1.5} if RELEASE >= (1, 6) else {}, (1, 3)),
    "reg:absoluteerror": (REAL, {}, (1, 7)),
    "reg:quantileerror": (REAL, {"quantile_alpha": 0.3}, (2, 0)),
    "reg:logistic": (BINARY, {}, (0, 72)),
    "reg:gamma": (POSITIVE, {}, (0, 72)),
    "reg:tweedie": (COUNTS, {"tweedie_variance_power": 1.3}, (0, 72)),
    "binary:logistic": (BINARY, {"scale_pos_weight": 2}, (0, 72)),
    "binary:logitraw": (BINARY, {}, (0, 72)),
    "binary:hinge": (BINARY, {}, (0, 80)),
    "count:poisson": (COUNTS, {"max_delta_step": 1}, (0, 72)),
    "survival:cox": (POSITIVE, {}, (0, 72)),
    "survival:aft": (POSITIVE, {"aft_loss_distribution": "logistic"}, (1, 2)),
    "multi:softmax": (CLASSES, {"num_class": 3}, (0, 72)),
    "multi:softprob": (CLASSES, {"num_class": 3}, (0, 72)),
    "rank:pairwise": (BINARY, {}, (0, 72)),
    "rank:ndcg": (BINARY, {}, (0, 72)),
    "rank:map": (BINARY, {}, (0, 72)),
}
SQUARED = "reg:squarederror" if RELEASE >= (0, 83) else "reg:linear"


def matrix(features=FEATURES, target=None, **options):
    return xgb.DMatrix(features, label=target, **options)


def train(objective, rounds=ROUNDS, target=None, base=BASE, **params):
    known_target, known_params, _ = OBJECTIVES[objective]
    data = matrix(target=known_target if target is None else target)
    if objective.startswith("rank:"):
        data.set_group([30, 30, 30])
    if objective == "survival:aft":
        data.set_float_info("label_lower_bound", POSITIVE)
        data.set_float_info("label_upper_bound", POSITIVE + BINARY)
    options = dict(base, objective=objective)
    if "scale_pos_weight" not in known_params or params.get("booster") != "gblinear":
        options.update(known_params)
    options.update(params)
    return xgb.train(options, data, num_boost_round=rounds)


def boosters():
    """(name, booster) pairs."""
    for objective, (_, _, since) in OBJECTIVES.items():
        if RELEASE >= since:
            yield objective.replace(":", "-"), train(objective)
    for objective in (SQUARED, "binary:logistic", "multi:softprob", "reg:gamma"):
        name = objective.replace(":", "-")
        yield name + "-dart", train(objective, booster="dart", rate_drop=0.5)
        # In an order that does not depend on threads.
        yield name + "-gblinear", train(objective, booster="gblinear", base=LINEAR_BASE, updater="coord_descent")
    yield "forest", train(SQUARED, num_parallel_tree=3, subsample=0.5)
    yield "base_score", train(SQUARED, base_score=-3.1415927)
    yield "base_score-logistic", train("binary:logistic", base_score=0.123456)
    yield "no-rounds", train(SQUARED, rounds=0)
    if RELEASE < (2, 0):  # these models do not say that they have no rounds
        yield "no-rounds-logistic", train("binary:logistic", rounds=0, base_score=0.2)
        yield "no-rounds-softprob", train("multi:softprob", rounds=0)
        yield "no-rounds-dart", train("count:poisson", rounds=0, booster="dart", base_score=1.7)
    early = train(SQUARED, rounds=6)
    early.set_attr(best_iteration="2", best_score="0.5", best_ntree_limit="3")
    yield "best_iteration", early
    early = train(SQUARED, rounds=4, num_parallel_tree=3, subsample=0.5)
    early.set_attr(best_iteration="1", best_score="0.5", best_ntree_limit="6")
    yield "best_iteration-forest", early
    if RELEASE >= (1, 6):
        targets = np.column_stack([REAL, -2 * REAL, POSITIVE])
        yield "targets", train(SQUARED, target=targets)
        yield "targets-logistic", train("binary:logistic", target=np.column_stack([BINARY, 1 - BINARY, CLASSES > 0]))
    if RELEASE >= (1, 7):
        data = matrix(CATEGORIES, CATEGORY_TARGET, feature_types=["c", "q", "q", "q"], enable_categorical=True)
        yield "categories-one-hot", xgb.train(dict(BASE, tree_method="hist", max_cat_to_onehot=100), data, ROUNDS)
        yield "categories", xgb.train(dict(BASE, tree_method="hist", max_cat_to_onehot=2), data, ROUNDS)
    if RELEASE >= (2, 0):
        yield "targets-absoluteerror", train("reg:absoluteerror", target=targets)
        yield "quantiles", train("reg:quantileerror", quantile_alpha=[0.1, 0.5, 0.9])
        yield "targets-tree", train(SQUARED, target=targets, multi_strategy="multi_output_tree", tree_method="hist")
    if RELEASE >= (3, 0):
        linear = {"base": LINEAR_BASE, "booster": "gblinear", "updater": "coord_descent"}
        yield "targets-gblinear", train(SQUARED, target=targets, **linear)
        yield "targets-dart", train(SQUARED, target=targets, booster="dart", rate_drop=0.5)
        yield "classes-tree", train("multi:softprob", multi_strategy="multi_output_tree", tree_method="hist")
    if RELEASE >= (3, 1):
        yield "base_score-edge", train("binary:logistic", base_score=1e-8)
        yield "absent-class", train("multi:softprob", num_class=4)
        yield "zeros", train("count:poisson", target=0 * COUNTS)
        if RELEASE >= (3, 2):
            yield "one-class", train("binary:logistic", target=0 * BINARY)
            yield "other-class", train("binary:logistic", target=0 * BINARY + 1)
        import pandas as pd

        frame = pd.DataFrame(CATEGORIES, columns=["a", "b", "c", "d"])
        frame["a"] = pd.Categorical.from_codes(CATEGORIES[:, 0].astype(int), ["c%d" % code for code in range(9)])
        data = matrix(frame, CATEGORY_TARGET, enable_categorical=True)
        # `validate_features` is off below: the rows have numbers for categories, and no names.
        yield "categories-named", xgb.train(dict(BASE, tree_method="hist", max_cat_to_onehot=2), data, ROUNDS)


def formats():
    if RELEASE >= (1, 0):
        yield "json"
    if RELEASE >= (1, 6):
        yield "ubj"
    if RELEASE < (3, 1):
        yield "model" if RELEASE < (2, 0) else "deprecated"


def native(booster, form):
    """The old binary format is what other suffixes mean, or what `deprecated` asks for since 2.0."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("m." + form)
        booster.save_model(str(path))
        return path.read_bytes()


def wrappers():
    """(name, fitted wrapper of scikit-learn's interface) pairs."""
    options = {"n_estimators": ROUNDS, "max_depth": 2, "learning_rate": 0.5, "n_jobs": 1, "random_state": 20}
    yield "XGBRegressor", xgb.XGBRegressor(objective=SQUARED, **options).fit(FEATURES, REAL)
    yield "XGBClassifier", xgb.XGBClassifier(**options).fit(FEATURES, BINARY)
    yield "XGBClassifier-3", xgb.XGBClassifier(**options).fit(FEATURES, CLASSES)
    if RELEASE < (1, 6):
        texts = np.array(["no", "yes"])
        yield "XGBClassifier-text", xgb.XGBClassifier(**options).fit(FEATURES, texts[BINARY])
        yield "XGBClassifier-object", xgb.XGBClassifier(**options).fit(FEATURES, texts.astype(object)[BINARY])


def dumped(model, **options):
    stream = io.BytesIO()
    joblib.dump(model, stream, **options)
    return stream.getvalue()


def dumps(name, model):
    """(file, content) pairs: by pickle and by joblib."""
    for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
        yield "%s.%d.pkl" % (name, protocol), pickle.dumps(model, protocol)
    yield name + ".joblib", dumped(model)
    for compressor in ("zlib", "gzip", "bz2", "lzma", "xz") if name == "XGBClassifier" else ("zlib",):
        yield "%s.%s.joblib" % (name, compressor), dumped(model, compress=(compressor, 3))


def predicted(booster, name):
    rows = np.array([[np.nan if value is None else value for value in row] for row in ROWS])
    data = xgb.DMatrix(rows)
    if name.startswith("best_iteration"):
        rounds, trees = (2, 6) if name.endswith("forest") else (3, 3)
        options = {"iteration_range": (0, rounds)} if RELEASE >= (1, 4) else {"ntree_limit": trees}
        return booster.predict(data, validate_features=False, **options)
    if name.endswith("-dart") and RELEASE < (1, 0):
        # Without a limit these releases drop trees as they do in training.
        return booster.predict(data, validate_features=False, ntree_limit=ROUNDS)
    return booster.predict(data, validate_features=False)


def main(out_dir):
    files, predictions = {}, {}

    def add(name, content, prediction):
        files[name] = content
        predictions[name] = [
            [float("%.9g" % value) for value in row] if np.ndim(row) else float("%.9g" % row) for row in prediction
        ]

    for name, booster in boosters():
        prediction = predicted(booster, name)
        for form in formats():
            if form in ("json", "ubj") or not name.startswith(("categories", "targets-tree", "classes-tree")):
                add("%s.%s" % (name, form), native(booster, form), prediction)
        add(name + ".pkl", pickle.dumps(booster), prediction)
    for name, model in wrappers():
        booster = model.get_booster()
        for file, content in dumps(name, model):
            add(file, content, predicted(booster, name))
    for file, content in dumps("booster", train(SQUARED)):
        add(file, content, predicted(train(SQUARED), "booster"))
    files["expected.json"] = json.dumps({"rows": ROWS, "predictions": predictions}, indent=1).encode()

    with tarfile.open(str(Path(out_dir) / (VERSION + ".tar.xz")), "w:xz", preset=9) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    print("wrote", VERSION, len(files), "files")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
