"""
XGBoost artifacts that are broken, or that mean harm: refused in a sentence, without code run, memory eaten or a crash.

What could crash XGBoost runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from conftest import ROOT
from polyhost_handlers import xgboost_ubjson
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.xgboost_artifact import load_booster
from polyhost_handlers.xgboost_binary import check_binary
from polyhost_handlers.xgboost_document import BrokenModel, check_document
from polyhost_handlers.xgboost_ubjson import Trees, read_ubjson

from handlers.test_xgboost import EXPECTED, FIXTURES, LABELS, TRAINING
from handlers.test_xgboost_releases import release

REFUSED = "^Unable to load model: xgboost-model is not a readable XGBoost model: "


def load(folder: Path, content: bytes) -> Any:
    path = folder / "xgboost-model"
    path.write_bytes(content)
    return load_booster(path)


class Orders:
    """Pickles as an order to call `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._order = (function, arguments)

    def __reduce__(self) -> Any:
        return self._order


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["os.system", "eval", "subprocess", "getattr", "load_model"])
def test_a_pickle_that_orders_something_does_nothing(name: str, protocol: int, tmp_path: Path) -> None:
    """
    Whatever protocol it is written in, nothing of it runs; the class that it may name is no class when it is read.
    """
    mark = tmp_path / "it ran"
    order = {
        "os.system": Orders(os.system, f"touch '{mark}'"),
        "eval": Orders(eval, f"open({str(mark)!r}, 'w')"),
        "subprocess": Orders(subprocess.call, ["touch", str(mark)]),
        "getattr": Orders(getattr, mark, "touch"),
        "load_model": Orders(xgboost.Booster, {}, (), str(mark)),
    }[name]
    for content in (order, [order]):
        with pytest.raises(LoadFailed, match=REFUSED):
            load(tmp_path, b"\x80\x02" * (protocol < 2) + pickle.dumps(content, protocol))
    booster = trained()
    booster.order = order
    if name == "load_model":
        load(tmp_path, pickle.dumps(booster, protocol))
    else:
        with pytest.raises(LoadFailed, match=REFUSED):
            load(tmp_path, pickle.dumps(booster, protocol))
    assert not mark.exists()


def test_the_refusal_names_what_was_ordered(tmp_path: Path) -> None:
    """So that its owner can see why."""
    with pytest.raises(LoadFailed, match=rf"{REFUSED}it names posix.system, which no model of XGBoost's does$"):
        load(tmp_path, pickle.dumps(Orders(os.system, "true")))


def global_(module: bytes, name: bytes) -> bytes:
    return b"c" + module + b"\n" + name + b"\n"


BYTEARRAY = global_(b"builtins", b"bytearray")
MEGABYTE = b"B" + struct.pack("<I", 2**20) + bytes(2**20)


@pytest.mark.parametrize(
    "content",
    [
        BYTEARRAY + b"J\xff\xff\xff\x7f\x85R.",  # bytearray(2147483647)
        BYTEARRAY + b"\x8a\x05\x00\x00\x00\x00\x10\x85R.",  # bytearray(2**36)
        BYTEARRAY + b"](K\x01K\x02e\x85R.",  # bytearray([1, 2])
        b"\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # BYTEARRAY8 of 2**40 bytes
        b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00.",  # BINBYTES8
        b"\x95\xff\xff\xff\xff\xff\x00\x00\x00.",  # FRAME
        b"Nr\xff\xff\xff\x7f.",  # memo number 2147483647: C's unpickler reserves 32 GB for it
        b"Np2147483647\n.",
        b"(" + BYTEARRAY + b"q\x00" + MEGABYTE + b"q\x01" + b"h\x00h\x01\x85R" * 300 + b"t.",  # one megabyte, 300 times
        b"(" + global_(b"_codecs", b"encode") + b"q\x00X" + struct.pack("<I", 2**20) + bytes(2**20) + b"q\x01"
        + b"h\x00h\x01\x85R" * 300 + b"t.",
    ],
)  # fmt: skip
def test_a_pickle_cannot_ask_for_memory(content: bytes, tmp_path: Path) -> None:
    """Neither at once nor bit by bit, and a refusal is never a MemoryError."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(LoadFailed, match=REFUSED):
        load(tmp_path, b"\x80\x04" + content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 20_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(None),
        pickle.dumps({"handle": b""}),
        pickle.dumps(xgboost.Booster),
        pickle.dumps(xgboost.XGBRegressor()),
        b"\x80\x04" + global_(b"xgboost.core", b"Booster") + b")\x81}\x8c\x06handleNsb.",
        b"\x80\x04" + global_(b"xgboost.core", b"Booster") + b")\x81]b.",
        b"\x80\x04" + global_(b"xgboost.core", b"Booster") + b")\x81}\x8c\x06handle" + BYTEARRAY + b"C\x03abc\x85Rsb.",
        b"\x80\x04" + global_(b"copyreg", b"_reconstructor") + global_(b"builtins", b"object") + b"\x85R.",
        b"\x80\x04" + global_(b"_codecs", b"encode") + b"\x8c\x01a\x8c\x06rot-13\x86R.",
        b"\x80\x04.",
    ],
)
def test_a_pickle_without_a_trained_booster(content: bytes, tmp_path: Path) -> None:
    """A class, an untrained model, a state that is none."""
    with pytest.raises(LoadFailed, match=REFUSED):
        load(tmp_path, content)


def trained(**parameters: Any) -> xgboost.Booster:
    target = LABELS if "num_class" in parameters else TRAINING[:, 0]
    options = {"nthread": 1, "verbosity": 0, "max_depth": 3, **parameters}
    return xgboost.train(options, xgboost.DMatrix(TRAINING, target), 3)


def test_every_protocol_of_a_good_pickle(tmp_path: Path) -> None:
    """Boosters and wrappers, with what training leaves in them."""
    booster = trained()
    wrapper = xgboost.XGBRegressor(
        n_estimators=3, n_jobs=1, random_state=np.random.RandomState(0), early_stopping_rounds=2
    )
    wrapper.fit(TRAINING, TRAINING[:, 0], eval_set=[(TRAINING, TRAINING[:, 0])], verbose=False)
    rows = xgboost.DMatrix(TRAINING)
    for protocol in range(6):
        for model, expected in ((booster, booster), (wrapper, wrapper.get_booster())):
            loaded = load(tmp_path, pickle.dumps(model, protocol))
            np.testing.assert_allclose(loaded.predict(rows), expected.predict(rows), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_file_that_is_cut_off_is_refused(name: str, tmp_path: Path) -> None:
    """XGBoost itself crashes, or hangs, on some prefixes of its own UBJSON."""
    content = (FIXTURES / name).read_bytes()
    # The old binary format's last part is about metrics, and its loss does no harm.
    end = len(content) if not name.startswith("old-binary-1") else 2300
    for length in {*range(0, end, 97), *range(end - 20, end)}:
        with pytest.raises(LoadFailed, match=REFUSED):
            load(tmp_path, content[:length])


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith(("ubj", "json", "old"))])
def test_no_prefix_passes_the_check(name: str) -> None:
    """Whatever is missing, XGBoost is not asked."""
    content = (FIXTURES / name).read_bytes()
    check = check_binary if name.startswith("old") else check_document
    check(content)
    for length in {*range(0, len(content), 7), *range(len(content) - 60, len(content))}:
        with pytest.raises(BrokenModel):
            check(content[:length])


FUZZ = """
import random, signal, sys
from pathlib import Path
import numpy as np, xgboost
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.xgboost_artifact import load_booster
from polyhost_handlers.xgboost_predict import predictor_of

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
rows = np.array([[0.1, -0.7, 1.5, 0.2], [-1, np.nan, 2, 0]])
for name in sys.argv[3:]:
    content, loaded = Path(name).read_bytes(), 0
    for seed in range(rounds):
        print(name, seed, flush=True)
        source, damaged = random.Random(seed), bytearray(content)
        for _ in range(source.choice([1, 1, 2, 4])):
            damaged[source.randrange(len(damaged))] = source.choice([0, 127, 128, 255, source.randrange(256)])
        (folder / "xgboost-model").write_bytes(damaged)
        signal.alarm(30)
        try:
            booster = load_booster(folder / "xgboost-model")
        except LoadFailed:
            continue
        loaded += 1
        if booster.num_features() == 4:
            predictor_of(booster).predict(rows)
    assert 0 < loaded < rounds, (name, loaded)
"""


def test_a_damaged_file_does_not_crash_the_process(tmp_path: Path) -> None:
    """Some wrong bytes make a file unreadable, others only another model; none ends the worker or eats its memory."""
    paths = [FIXTURES / name for name in ("ubj-3.0.ubj", "old-binary-0.90.model", "pickle-1.0.pkl", "pickle-3.0.pkl")]
    # Those that are put together or taken apart before XGBoost reads them.
    for version, name in (("3.2.0", "quantiles.ubj"), ("1.7.6", "reg-gamma.ubj"), ("1.3.3", "XGBClassifier.joblib")):
        path = release(version).file(name, tmp_path, name)
        paths.append(path)
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FUZZ, str(tmp_path), "100", *map(str, paths)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )  # fmt: skip

    last = process.stdout.splitlines()[-1:]
    assert process.returncode != -signal.SIGALRM, f"hangs: {last}"
    assert process.returncode == 0, f"{last}: {process.stderr[-2000:]}"


def document() -> dict[str, Any]:
    return json.loads(trained(num_class=3, objective="multi:softprob").save_raw("json"))


def tree(model: dict[str, Any]) -> dict[str, Any]:
    return model["learner"]["gradient_booster"]["model"]["trees"][0]


def model_of(model: dict[str, Any]) -> dict[str, Any]:
    return model["learner"]["gradient_booster"]["model"]


def put(values: list[Any], index: int, value: Any) -> None:
    values[index] = value


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a child beyond its tree": lambda model: put(tree(model)["left_children"], 0, 1000),
    "a child that is the root": lambda model: put(tree(model)["right_children"], 0, 0),
    "a child below none": lambda model: put(tree(model)["left_children"], 0, -2),
    "a ring of nodes": lambda model: put(tree(model)["left_children"], 1, 1),
    "half a node": lambda model: put(tree(model)["left_children"], 0, -1),
    "a parent that is none": lambda model: put(tree(model)["parents"], 1, 5),
    "a feature that the model does not have": lambda model: put(tree(model)["split_indices"], 0, 4),
    "a feature below none": lambda model: put(tree(model)["split_indices"], 0, -1),
    "fewer parents than nodes": lambda model: tree(model)["parents"].pop(),
    "fewer features than nodes": lambda model: tree(model)["split_indices"].pop(),
    "no nodes": lambda model: [
        tree(model)[name].clear() for name in ("left_children", "right_children", "parents", "split_indices")
    ],
    "a tree of no class": lambda model: put(model_of(model)["tree_info"], 0, 3),
    "fewer classes than trees": lambda model: model_of(model)["tree_info"].pop(),
    "rounds that go back": lambda model: put(model_of(model)["iteration_indptr"], 1, 9),
    "rounds beyond the trees": lambda model: put(model_of(model)["iteration_indptr"], -1, 10),
    "classes without number": lambda model: model["learner"]["learner_model_param"].update(num_class="2000000000"),
    "classes below none": lambda model: model["learner"]["learner_model_param"].update(num_class="-16777216"),
    "features that are no number": lambda model: model["learner"]["learner_model_param"].update(num_feature="x"),
    "no learner": lambda model: model.pop("learner"),
    "no booster": lambda model: model["learner"].pop("gradient_booster"),
    "text for nodes": lambda model: tree(model).update(left_children="abc"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_trees_that_are_none(damage: str) -> None:
    """What XGBoost would follow out of its memory, or for ever."""
    model = document()
    check_document(json.dumps(model).encode())
    DAMAGE[damage](model)
    with pytest.raises(BrokenModel):
        check_document(json.dumps(model).encode())


def test_depth_is_limited() -> None:
    """XGBoost's readers go down by recursion, until the stack ends."""
    for content in (b"{L" + struct.pack(">q", 1) + b"a" + b"[" * 100_000, b'{"learner":' + b"[" * 100_000):
        with pytest.raises(BrokenModel):
            check_document(content)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"booster": "dart", "rate_drop": 0.5},
        {"booster": "gblinear"},
        {"objective": "multi:softprob", "num_class": 3},
        {"objective": "multi:softmax", "num_class": 3, "booster": "gblinear"},
        {"num_parallel_tree": 3, "subsample": 0.5},
        {"tree_method": "exact", "gamma": 5, "max_depth": 8},
        {"grow_policy": "lossguide", "max_leaves": 5},
        {"objective": "count:poisson", "max_delta_step": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["ubj", "json", "deprecated"])
def test_good_models_of_every_kind_pass(parameters: dict[str, Any], form: str, tmp_path: Path) -> None:
    """The checks know what XGBoost writes: pruned trees, forests, weights, several outputs."""
    if "count" in parameters.get("objective", ""):
        booster = xgboost.train({"verbosity": 0, **parameters}, xgboost.DMatrix(TRAINING, LABELS), 3)
    else:
        booster = trained(**parameters)
    with xgboost.config_context(verbosity=0):
        content = bytes(booster.save_raw(form))
    rows = xgboost.DMatrix(TRAINING)
    np.testing.assert_allclose(load(tmp_path, content).predict(rows), booster.predict(rows), rtol=1e-4, atol=1e-6)


def test_good_models_of_categories_targets_and_no_rounds_pass(tmp_path: Path) -> None:
    """Splits by category, leaves that are vectors, a model before its first round, a slice."""
    random.seed(0)
    features = np.column_stack([[random.randrange(30) for _ in TRAINING], TRAINING[:, 0]])
    matrix = xgboost.DMatrix(features, features[:, 0] % 3, feature_types=["c", "q"], enable_categorical=True)
    categories = xgboost.train({"max_cat_to_onehot": 4, "nthread": 1}, matrix, 3)
    assert any(
        tree["categories_nodes"]
        for tree in json.loads(categories.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    )
    targets = xgboost.DMatrix(TRAINING, TRAINING[:, :3])
    vectors = xgboost.train({"multi_strategy": "multi_output_tree", "nthread": 1}, targets, 3)
    quantiles = trained(objective="reg:quantileerror", quantile_alpha=[0.1, 0.5, 0.9])
    several, none = xgboost.train({}, targets, 2), xgboost.train({}, targets, 0)
    for booster in (categories, vectors, quantiles, several, none, trained()[1:3]):
        for form in ("ubj", "json"):
            content = bytes(booster.save_raw(form))
            assert load(tmp_path, content).num_features() == booster.num_features()


def test_categories_that_lie_elsewhere() -> None:
    """A node's categories are a piece of a list; the piece must be there."""
    features = np.column_stack([np.arange(120) % 30, TRAINING[:, 0]])
    matrix = xgboost.DMatrix(features, features[:, 0] % 3, feature_types=["c", "q"], enable_categorical=True)
    content = xgboost.train({"max_cat_to_onehot": 4, "nthread": 1}, matrix, 1).save_raw("json")
    for name, value in (
        ("categories_segments", 1000),
        ("categories_segments", -1),
        ("categories_sizes", 1000),
        ("categories_nodes", 1000),
        ("categories", 2**31 - 1),
    ):
        model = json.loads(content)
        put(tree(model)[name], 0, value)
        with pytest.raises(BrokenModel, match=r"do not fit together"):
            check_document(json.dumps(model).encode())


def test_the_fuzzer_runs_in_our_tree() -> None:
    """The subprocess imports what is tested here."""
    command = [sys.executable, "-c", "import polyhost_handlers; print(polyhost_handlers.__file__)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith(str(ROOT))


def plain_document(rounds: int, max_depth: int = 4) -> bytes:
    """A model whose trees are read in one pass: ids of one byte and of two, ends of several lengths."""
    options = {"nthread": 1, "max_depth": max_depth, "num_class": 3, "objective": "multi:softprob"}
    return bytes(xgboost.train(options, xgboost.DMatrix(TRAINING, LABELS), rounds).save_raw("ubj"))


def trees_of(content: bytes) -> Any:
    return read_ubjson(content)["learner"]["gradient_booster"]["model"]["trees"]


def test_trees_read_in_one_pass_are_those_read_one_by_one() -> None:
    """Also beyond 127 trees, where XGBoost writes longer numbers, and beyond the trees that are compared at once."""
    content = plain_document(200)
    nodes = trees_of(content)
    assert isinstance(nodes, Trees)
    trees = json.loads(xgboost.Booster(model_file=bytearray(content)).save_raw("json"))
    trees = trees["learner"]["gradient_booster"]["model"]["trees"]
    assert nodes.sizes.tolist() == [len(tree["parents"]) for tree in trees]
    for row, name in zip(nodes.nodes, ("left_children", "right_children", "parents", "split_indices"), strict=True):
        assert row.tolist() == [value for tree in trees for value in tree[name]]
    check_document(content)


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_one_pass_sees_what_reading_one_by_one_sees(mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever byte of the trees is wrong: both refuse the document, or both read the same trees."""
    content = plain_document(1, max_depth=1)
    begin, end = content.index(b"trees[#"), content.index(b"learner_model_param")
    damaged = [content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :] for at in range(begin, end)]
    in_one_pass = [outcome(one) for one in damaged]
    monkeypatch.setattr(xgboost_ubjson, "_TREE", b"no tree begins so")
    assert in_one_pass == [outcome(one) for one in damaged]
    assert 0 < in_one_pass.count(None) < len(damaged)


def outcome(content: bytes) -> Any:
    try:
        check_document(content)
    except BrokenModel:
        return None
    trees = trees_of(content)
    if isinstance(trees, Trees):
        return trees.sizes.tolist(), trees.nodes.tolist()
    names = ("left_children", "right_children", "parents", "split_indices")
    rows = [[value for tree in trees for value in tree[name].tolist()] for name in names]
    return [len(tree["parents"]) for tree in trees], rows


@pytest.mark.parametrize("name", ["old-binary-0.90.model", "old-binary-1.7.deprecated.model"])
def test_trees_of_the_old_binary_format_are_checked(name: str, tmp_path: Path) -> None:
    """Before XGBoost reads them: a child, a parent, a feature or a class that the model does not have."""
    content = (FIXTURES / name).read_bytes()
    check_binary(content)
    booster = load_booster(FIXTURES / name)
    first = trees_of(bytes(booster.save_raw("ubj"))).nodes[:3, 0]
    left, right = int(first[0]), int(first[1])
    root = content.index(struct.pack("<iii", -1, left, right))
    for offset, value in ((4, 1000), (8, 0), (4, -2), (8, -1), (12, 4), (20, 5)):
        damaged = bytearray(content)
        damaged[root + offset : root + offset + 4] = struct.pack("<i", value)
        with pytest.raises(BrokenModel):
            check_binary(bytes(damaged))
        with pytest.raises(LoadFailed, match=REFUSED):
            load(tmp_path, bytes(damaged))


def test_classes_below_none_in_the_old_binary_format(tmp_path: Path) -> None:
    """XGBoost would load them, and run out of memory at the first request."""
    content = bytearray((FIXTURES / "old-binary-0.90.model").read_bytes())
    content[11] = 255
    with pytest.raises(LoadFailed, match=REFUSED):
        load(tmp_path, bytes(content))
