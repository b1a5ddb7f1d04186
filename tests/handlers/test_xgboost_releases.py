"""
XGBoost's releases: what each of them writes is recognised, loads, and predicts what that release itself predicts.

The archives in tests/data/xgboost/releases hold every objective, booster and format of a release.
"""

from __future__ import annotations

import json
import struct
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import xgboost
from conftest import ROOT
from polyhost_handlers.artifacts import is_booster, recognise
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.xgboost_artifact import load_booster
from polyhost_handlers.xgboost_predict import predictor_of
from scipy.sparse import csr_matrix
from support.forms import by_form

from handlers.calling import Model, csv

ARCHIVES = sorted((ROOT / "tests" / "data" / "xgboost" / "releases").glob("*.tar.xz"))
RELEASES = [path.name.removesuffix(".tar.xz") for path in ARCHIVES]
# Trees whose leaves are vectors lie otherwise in files of 3.2 than 3.0 reads them.
UNREADABLE = {"3.2.0": ("targets-tree", "classes-tree")}

# An exponential, a sum of some and their ratio may each be off by one.
_MOST_BITS = 3


@dataclass(frozen=True)
class Release:
    """What one release wrote, and what it predicts for `rows`."""

    version: str
    files: dict[str, bytes]
    rows: np.ndarray[Any, Any]
    predictions: dict[str, Any]

    def file(self, name: str, folder: Path, under: str = "xgboost-model") -> Path:
        path = folder / under
        path.write_bytes(self.files[name])
        return path

    def is_readable(self, name: str) -> bool:
        return name.partition(".")[0] not in UNREADABLE.get(self.version, ())


_read: dict[str, Release] = {}


def release(version: str) -> Release:
    if version not in _read:
        with tarfile.open(ROOT / "tests" / "data" / "xgboost" / "releases" / f"{version}.tar.xz") as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        told = json.loads(files.pop("expected.json"))
        rows = np.array([[np.nan if value is None else value for value in row] for row in told["rows"]])
        _read[version] = Release(version, files, rows, told["predictions"])
    return _read[version]


def as_floats(predictions: Any) -> np.ndarray[Any, Any]:
    return np.array(predictions, np.float32)


def check_equal(got: Any, expected: Any, version: str, name: str) -> None:
    """
    To the last bits since 1.7: the C library's exponential is not quite the same on every CPU.

    Older releases added up in another order, or wrote base_score with fewer digits.
    """
    if version >= "1.7":
        np.testing.assert_array_max_ulp(as_floats(got), as_floats(expected), _MOST_BITS)
    else:
        np.testing.assert_allclose(as_floats(got), as_floats(expected), rtol=2e-6, atol=2e-6, err_msg=name)


def test_the_releases_that_the_readme_names() -> None:
    minors = {".".join(version.split(".")[:2]) for version in RELEASES}
    assert minors >= {"0.72", "0.90", "1.0", "1.3", "1.5", "1.7", "2.0", "2.1", "3.0", "3.1", "3.2"}


@pytest.mark.parametrize("version", RELEASES)
def test_a_release_predicts_as_ever(version: str, tmp_path: Path) -> None:
    """Dense and sparse rows, many and one, of every file."""
    written = release(version)
    assert set(written.files) == set(written.predictions)
    present = np.nonzero(~np.isnan(written.rows))
    sparse = csr_matrix((written.rows[present], present), shape=written.rows.shape)
    for name in filter(written.is_readable, written.files):
        path = written.file(name, tmp_path, name)
        assert is_booster(path), name
        predictor = predictor_of(load_booster(path))
        expected = written.predictions[name]
        check_equal(predictor.predict(written.rows), expected, version, name)
        check_equal(predictor.predict(written.rows[1:2]), expected[1:2], version, name)
        check_equal(predictor.predict(written.rows[1:]), expected[1:], version, name)
        check_equal(predictor.predict(sparse), expected, version, name)
        value = predictor.predict_csv_row(csv(written.rows[:1]))
        assert value is None or as_floats(value) == predictor.predict(written.rows[:1]), name


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("name", ["XGBClassifier", "XGBClassifier-3", "XGBClassifier-text", "XGBClassifier-object"])
def test_a_classifier_answers_one_thing(name: str, version: str, load: Callable[..., Model], tmp_path: Path) -> None:
    """Pickle or joblib, whatever the protocol and the compression: the booster's probabilities, not labels."""
    written = release(version)
    dumps = [file for file in written.files if file.split(".")[0] == name]
    if not dumps and name.endswith(("-text", "-object")):
        return  # since 1.6 classes are numbers
    answers = set()
    for file in dumps:
        folder = tmp_path / file
        folder.mkdir()
        written.file(file, folder, "model.joblib" if file.endswith("joblib") else "model.pkl")
        assert recognise(folder, {}).name == "xgboost"
        answers.add(load("auto", folder).ask(csv(written.rows)).body)
    assert len(answers) == 1 < len(dumps)
    check_equal(json.loads(answers.pop()), written.predictions[dumps[0]], version, name)


@pytest.mark.parametrize(
    "file", ["model.joblib.gz", "model.joblib.z", "model.joblib.xz", "model.pkl.gz", "model.pkl.bz2", "xgboost-model"]
)
def test_compressed_files_by_their_content(file: str, load: Callable[..., Model], tmp_path: Path) -> None:
    """Whatever their suffix says."""
    import bz2
    import gzip
    import lzma

    written = release("2.1.4")
    content = written.files["XGBRegressor.2.pkl"]
    compress: Any = bz2.compress if file.endswith("bz2") else lzma.compress if file.endswith("xz") else gzip.compress
    (tmp_path / file).write_bytes(compress(content))

    assert recognise(tmp_path, {}).name == "xgboost"
    answer = load("auto", tmp_path).ask(csv(written.rows)).json()
    check_equal(answer, written.predictions["XGBRegressor.2.pkl"], "2.1.4", file)


@pytest.mark.parametrize("file", ["model.joblib", "model.joblib.lz4", "xgboost-model"])
def test_joblibs_lz4(file: str, load: Callable[..., Model], tmp_path: Path) -> None:
    written = release("2.1.4")
    model = xgboost.XGBRegressor()
    model._Booster = load_booster(written.file("reg-squarederror.ubj", tmp_path, "booster"))
    model._Booster.written = None  # which is no part of a booster that somebody else has pickled
    (tmp_path / "booster").unlink()
    with (tmp_path / file).open("wb") as stream:
        joblib.dump(model, stream, compress=("lz4", 3))

    assert recognise(tmp_path, {}).name == "xgboost"
    answer = load("auto", tmp_path).ask(csv(written.rows)).json()
    check_equal(answer, written.predictions["reg-squarederror.ubj"], "2.1.4", file)


@pytest.mark.parametrize("file", ["model.joblib", "xgboost-model"])
def test_lz4_without_its_package(
    file: str, load: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names the package. joblib has its own, for what is not known to be of XGBoost."""
    with (tmp_path / file).open("wb") as stream:
        joblib.dump("a model", stream, compress=("lz4", 3))
    for module in ("lz4", "lz4.frame"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(joblib.compressor, "lz4", None)
    with pytest.raises(LoadFailed, match=r"needs the Python package lz4|LZ4 is not installed\. Install it"):
        load("auto", tmp_path)


@pytest.mark.parametrize("form", ["json", "ubj", "pkl"])
@pytest.mark.parametrize("name", UNREADABLE["3.2.0"])
def test_what_the_installed_release_cannot_read_is_told_by_both_versions(name: str, form: str, tmp_path: Path) -> None:
    path = release("3.2.0").file(f"{name}.{form}", tmp_path)
    with pytest.raises(LoadFailed) as raised:
        load_booster(path)

    assert f"xgboost-model is of XGBoost 3.2.0, newer than XGBoost {xgboost.__version__} here" in raised.value.message
    assert "Train it with XGBoost 3.0 or an earlier one." in raised.value.message


@pytest.mark.parametrize("name", ["reg-squarederror.json", "reg-squarederror.ubj", "reg-squarederror.pkl"])
def test_releases_that_nobody_has_compared_are_refused(name: str, tmp_path: Path) -> None:
    """3.3 may mean something else by the same file."""
    content = release("3.2.0").files[name]
    for before, after in ((b'"version":[3,2,', b'"version":[3,3,'), (b"i\x03i\x02i\x00", b"i\x03i\x03i\x00")):
        content = content.replace(before, after)
    (tmp_path / "xgboost-model").write_bytes(content)
    with pytest.raises(
        LoadFailed, match=r"is of XGBoost 3\.3\.0, newer than XGBoost 3\.0\.\d+ here, which cannot read"
    ):
        load_booster(tmp_path / "xgboost-model")


@pytest.mark.parametrize(
    "beginning", [b"{", b"{L", b'{"', b"\x80\x02", b"\x80\x04", b"BZh", b"\x1f\x8b", b"x\x9c", b"bs6"]
)
def test_an_old_binary_begins_with_any_bytes(beginning: bytes, load: Callable[..., Model], tmp_path: Path) -> None:
    """They are a number: what every prediction begins with."""
    written = release("0.90")
    content = written.files["reg-squarederror.model"]
    start = (beginning + b"\0\x08\x3f")[:3] + b"\x40"
    (base,), (other,) = struct.unpack("<f", content[:4]), struct.unpack("<f", start)
    expected = as_floats(written.predictions["reg-squarederror.model"]) - np.float32(base) + np.float32(other)
    for wrapped in (start + content[4:], b"binf" + start + content[4:]):
        (tmp_path / "model.bin").write_bytes(wrapped)
        assert recognise(tmp_path, {}).name == "xgboost"
        np.testing.assert_allclose(load("auto", tmp_path).ask(csv(written.rows)).json(), expected, rtol=1e-5)


def test_base_scores_are_read_to_the_last_bit(tmp_path: Path) -> None:
    """XGBoost 3.0's own reader is off by one bit for one number in five."""
    document = json.loads(release("3.2.0").files["no-rounds.json"])
    row = np.zeros((1, 4))
    for number in np.random.default_rng(3).normal(size=200).astype(np.float32) * np.float32(1e4):
        document["learner"]["learner_model_param"]["base_score"] = f"[{number!s}]"
        (tmp_path / "xgboost-model").write_text(json.dumps(document))
        predictor = predictor_of(load_booster(tmp_path / "xgboost-model"))
        assert predictor.predict(row)[0] == predictor.predict_csv_row(b"0,0,0,0") == number


@pytest.mark.parametrize(
    ("base_score", "reason"),
    [
        ("[1E0,2E0]", "its base_score has 2 numbers for 1 outputs"),
        ("[]", "its base_score has 0 numbers"),
        ("[x]", "could not convert"),
        ("[-1E0]", "its base_score is out of range for reg:gamma"),
    ],
)
def test_base_scores_that_do_not_fit(base_score: str, reason: str, tmp_path: Path) -> None:
    document = json.loads(release("3.2.0").files["reg-gamma.json"])
    document["learner"]["learner_model_param"]["base_score"] = base_score
    (tmp_path / "xgboost-model").write_text(json.dumps(document))
    with pytest.raises(LoadFailed, match=reason):
        load_booster(tmp_path / "xgboost-model")


def test_gamma_with_white_space(tmp_path: Path) -> None:
    """A JSON model that passed through a tool."""
    written = release("1.7.6")
    document = json.loads(written.files["reg-gamma.json"])
    (tmp_path / "xgboost-model").write_text(json.dumps(document, indent=2))
    predictor = predictor_of(load_booster(tmp_path / "xgboost-model"))
    check_equal(predictor.predict(written.rows), written.predictions["reg-gamma.json"], "1.7.6", "reg-gamma")


@pytest.mark.parametrize("form", ["json", "ubj", "model"])
def test_gammas_name_in_another_place_does_no_harm(form: str, tmp_path: Path) -> None:
    """What is put in at the wrong place makes a broken model, which is refused before XGBoost reads it."""
    written = release("1.7.6")
    booster = xgboost.Booster(model_file=bytearray(written.files["reg-gamma.json"].replace(
        b'{"name":"reg:gamma"}', b'{"name":"reg:gamma","reg_loss_param":{"scale_pos_weight":"1"}}'
    )))  # fmt: skip
    inner = b"L" + struct.pack(">q", 9)
    name = inner + b"objective{L" + struct.pack(">q", 4) + b"nameS" + inner + b"reg:gamma}"
    booster.set_attr(note='"objective":{"name":"reg:gamma"}', other=name.decode())
    with xgboost.config_context(verbosity=0):
        content = bytes(booster.save_raw("deprecated" if form == "model" else form))
    (tmp_path / "xgboost-model").write_bytes(content)
    try:
        predictor = predictor_of(load_booster(tmp_path / "xgboost-model"))
    except LoadFailed:
        return
    check_equal(predictor.predict(written.rows), written.predictions["reg-gamma.json"], "1.7.6", form)


@pytest.mark.parametrize("compress", ["zlib", "xz", "lzma", "lz4"])
def test_a_compressed_file_that_is_a_bomb_or_cut_off(compress: str, tmp_path: Path) -> None:
    import lzma
    import tracemalloc
    import zlib

    import lz4.frame

    methods: dict[str, Callable[[bytes], bytes]] = {
        "zlib": zlib.compress, "xz": lzma.compress,
        "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE), "lz4": lz4.frame.compress,
    }  # fmt: skip
    path = tmp_path / "xgboost-model"
    path.write_bytes(methods[compress](bytes(30_000_000)))
    tracemalloc.start()
    with pytest.raises(LoadFailed, match=r"it unpacks to more than 100 times its size"):
        load_booster(path)
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()
    content = methods[compress](release("3.0.5").files["XGBRegressor.5.pkl"])
    for length in range(6, len(content) - 1, 331):
        path.write_bytes(content[:length])
        with pytest.raises(LoadFailed, match=r"is not a readable XGBoost model"):
            load_booster(path)


def test_arrays_of_joblib_that_lie(tmp_path: Path) -> None:
    """Cut off within an array, or an array that says that it is longer."""
    content = release("1.3.3").files["XGBClassifier.joblib"]
    for length in range(200, len(content), by_form(short=1009, long=331)):
        (tmp_path / "xgboost-model").write_bytes(content[:length])
        with pytest.raises(LoadFailed):
            load_booster(tmp_path / "xgboost-model")
