"""What a script leaves out: the inference toolkit's own decoder and encoder say what is right."""

from __future__ import annotations

import array
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from polyhost_handlers import script_defaults
from polyhost_handlers.errors import HandlerError
from support.forms import examples

from handlers.calling import Model, npy, npy_header

CSV, JSON, NPY, NPZ = "text/csv", "application/json", "application/x-npy", "application/x-npz"


def theirs(function: Callable[[Any, str], Any], value: Any, media_type: str) -> tuple[bool, Any]:
    """Whether the toolkit's `decode` or `encode` takes it, and what it makes of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return True, function(value, media_type)
    except Exception as error:  # noqa: BLE001 - whatever it raises, it has no answer
        return False, error


def assert_read_alike(body: str | bytes, media_type: str) -> None:
    """As the toolkit reads it; what it cannot read is refused with a sentence."""
    from sagemaker_inference import decoder

    is_read, right = theirs(decoder.decode, body, media_type)
    if is_read:
        assert_same(script_defaults.input_fn(body, media_type), right)
        return
    with pytest.raises(HandlerError) as raised:
        script_defaults.input_fn(body, media_type)
    assert raised.value.status in (204, 400)


def assert_same(got: Any, right: Any) -> None:
    assert type(got) is type(right)
    if hasattr(right, "toarray"):
        got, right = got.toarray(), right.toarray()
    assert (got.dtype, got.shape) == (right.dtype, right.shape)
    assert repr(got.tolist()) == repr(right.tolist())  # nan is itself here


@pytest.mark.parametrize(
    "body",
    [
        "1,2,3", "1,2.5,3", "1,2\n3,4\n", "1\n2\n3", "7", "1,a,3", "a,b", "a,1\nb,2", "02139,1E5", "nan,inf,-inf",
        "1,,3", ",", "True,False", "1+2j,3", "9223372036854775808,1", " 1 , 2 ", "1\t2", "1;2", "1,2\r\n3,4\r\n",
        '"a,b",2', "1,2 # a comment\n3,4", "# nothing", "", "\n", "é,ü", "1,2\n\n3,4", "1,2\n3,4,5", "\ufeff1,2",
    ],
)  # fmt: skip
def test_csv(body: str) -> None:
    assert_read_alike(body, CSV)


@settings(max_examples=examples(75))
@given(st.text(alphabet="0123456789.,,,\n\n-+eEaNn #\"'\r\t\0éj_", max_size=40))
def test_any_csv(body: str) -> None:
    assert_read_alike(body, CSV)


@pytest.mark.parametrize(
    "body",
    [
        "[1, 2]", "[[1, 2.5]]", "[[1], [2, 3]]", "[]", "[[]]", "7", "null", '"text"', '["a", 1]', '{"a": [1]}',
        '{"instances": [[1, 2]]}', '[{"a": 1}]', "[null, 1]", "[true, 2]", "[NaN, 1e400]", "[18446744073709551616]",
        "[-1, 18446744073709551615]", "", "{", "[1,]",
    ],
)  # fmt: skip
def test_json(body: str) -> None:
    assert_read_alike(body, JSON)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
documents = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=examples(75))
@given(documents)
def test_any_json(document: Any) -> None:
    assert_read_alike(json.dumps(document), JSON)


numbers = npst.boolean_dtypes() | npst.integer_dtypes() | npst.floating_dtypes() | npst.complex_number_dtypes()
arrays = npst.arrays(
    numbers | npst.unicode_string_dtypes() | npst.byte_string_dtypes() | npst.datetime64_dtypes(),
    npst.array_shapes(min_dims=0, min_side=0, max_side=4),
)


@settings(max_examples=examples(50))
@given(arrays)
def test_any_npy(values: Any) -> None:
    assert_read_alike(npy(values), NPY)


def test_npy_of_records() -> None:
    assert_read_alike(npy(np.array([(1, 2.5, "a")], dtype="i4,f8,U3")), NPY)


@settings(max_examples=examples(25))
@given(
    npst.arrays(st.sampled_from(["f8", "f4", "i8"]), npst.array_shapes(min_dims=2, max_dims=2, max_side=4)),
    st.sampled_from(["csr", "csc", "coo", "dia", "bsr"]),
    st.booleans(),
)
def test_any_npz(dense: Any, form: str, is_compressed: bool) -> None:
    from scipy import sparse

    stream = io.BytesIO()
    sparse.save_npz(stream, sparse.coo_matrix(dense).asformat(form), compressed=is_compressed)
    assert_read_alike(stream.getvalue(), NPZ)


def assert_written_alike(prediction: Any, media_type: str) -> None:
    """As the toolkit writes it; where it cannot, ours may."""
    from sagemaker_inference import encoder

    is_written, right = theirs(encoder.encode, prediction, media_type)
    if is_written:
        right = right.encode() if isinstance(right, str) else right
        assert script_defaults.output_fn(prediction, media_type) == (right, media_type)


class HasToList:
    """As tensors and series have."""

    def __repr__(self) -> str:
        """The same in each process: it is part of the names of tests."""
        return "HasToList()"

    def tolist(self) -> list[float]:
        return [1.0, 2.5]


@pytest.mark.parametrize("media_type", [JSON, CSV, NPY])
@pytest.mark.parametrize(
    "prediction",
    [
        [1, 2], [[1, 2.5], [3, 4]], 1.5, "text", ["a,b", 'c"'], None, [], [[]], {"scores": np.arange(2)},
        np.array([1, 2]), np.float32([0.1, 1e20]), np.array(["a", "b"]), np.array(["a", 1], dtype=object),
        np.array([(1, "a")], dtype="i4,U3"), np.array(3), np.array([True]), np.array([np.nan, np.inf]),
        array.array("d", [1, 2]), {"scores": array.array("d", [1, 2])}, HasToList(), [HasToList()], (1, 2),
        {"a": {"b": [None, True]}}, np.datetime64("2020-01-01"), range(3),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_answered(prediction: Any, media_type: str) -> None:
    assert_written_alike(prediction, media_type)


@settings(max_examples=examples(75))
@given(documents | arrays, st.sampled_from([JSON, CSV, NPY]))
def test_anything_is_answered_alike(prediction: Any, media_type: str) -> None:
    assert_written_alike(prediction, media_type)


@pytest.mark.parametrize(
    "accept", ["text/csv, application/json", "image/png,text/csv", "application/x-npy", "application/json"]
)
def test_the_first_accept_that_is_known(accept: str) -> None:
    from sagemaker_inference.default_inference_handler import DefaultInferenceHandler

    body, name = DefaultInferenceHandler().default_output_fn([1, 2], accept)
    assert script_defaults.output_fn([1, 2], accept) == (body.encode() if isinstance(body, str) else body, name)


def test_numbers_longer_than_float64() -> None:
    """The toolkit's `tolist` of one gives itself, for ever."""
    assert script_defaults.output_fn(np.array([0.5, 2], "longdouble"), JSON) == (b"[0.5, 2.0]", JSON)


def test_a_tensor_with_its_gradient() -> None:
    """PyTorch's refuse to become an array until they are detached."""

    class Tensor(HasToList):
        def __array__(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

        def detach(self) -> Any:
            return self

        def cpu(self) -> Any:
            return self

        def numpy(self) -> Any:
            return np.array([1.0, 2.5])

    assert script_defaults.output_fn(Tensor(), CSV) == (b"1.0\n2.5\n", CSV)
    assert script_defaults.output_fn(Tensor(), JSON) == (b"[1.0, 2.5]", JSON)


# What a body may not do


class Bomb:
    def __reduce__(self) -> Any:
        raise AssertionError("a pickle was read")


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def csr(indices: list[int], indptr: list[int], shape: list[int]) -> bytes:
    parts = {"data": [1.0] * len(indices), "indices": indices, "indptr": indptr, "shape": shape}
    return zipped({"format.npy": npy(b"csr"), **{f"{name}.npy": npy(values) for name, values in parts.items()}})


OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([{}], dtype=object))


@pytest.mark.parametrize(
    ("body", "media_type", "sentence"),
    [
        (OBJECTS.getvalue(), NPY, "dtype object"),
        (pickle.dumps([1]), NPY, "its header cannot be read"),
        (npy_header("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }"), NPY, ".npy file"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,), }"), NPY, "promises"),
        (zipped({"data.npy": OBJECTS.getvalue()}), NPZ, "dtype object"),
        (zipped({"data.npy": b"\0" * 200_000_000}), NPZ, "unpacks to 200000000 bytes"),
        (zipped({"other.npy": npy([1])}), NPZ, "not a sparse matrix"),
        (b"PK", NPZ, "not a sparse matrix"),
        (csr([10**6], [0, 1], [1, 2]), NPZ, "not a sparse matrix"),
        (csr([0], [0, 10**6], [1, 2]), NPZ, "not a sparse matrix"),
        (b"x" * 40_000 + b"\n1" * 40_000, CSV, "an input_fn"),
        (json.dumps(["x" * 40_000] + [""] * 40_000), JSON, "an input_fn"),
        ("1," * 200_000, CSV, "at most 100000"),
        ("[" * 100_000, JSON, "not JSON"),
        (b"\xff", CSV, "not UTF-8"),
        (npy_header("{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }", b"\xff" * 4), NPY, "no Unicode"),
        (npy_header("{'descr': [('a', '>U1')], 'fortran_order': False, 'shape': (1,), }", b"\xff" * 4), NPY, "no Unic"),
    ],
    ids=[
        "npy of objects", "a pickle", "npy of objects in records", "npy that is short", "npz of objects",
        "a zip bomb", "npz of other things", "npz cut off", "an index beyond", "a pointer beyond", "csv that grows",
        "json that grows", "too many columns", "json too deep", "no text", "no characters",
        "no characters in records",
    ],
)  # fmt: skip
def test_hostile_bodies(body: bytes | str, media_type: str, sentence: str) -> None:
    with pytest.raises(HandlerError, match=sentence) as raised:
        script_defaults.input_fn(body, media_type)
    assert raised.value.status == 400


# predict_fn, which the toolkit does not have


class Rows:
    """As a scikit-learn model that knows its features."""

    def __init__(self, width: int) -> None:
        self.n_features_in_ = width

    def predict(self, rows: Any) -> Any:
        if rows.ndim != 2:
            raise ValueError("Expected 2D array")
        return rows


@pytest.mark.parametrize(
    ("body", "width", "rows"),
    [
        ("1,2,3", 3, [[1, 2, 3]]),
        ("1,2.5", 2, [[1.0, 2.5]]),
        ("1,2.5\n3,4", 2, [[1.0, 2.5], [3.0, 4.0]]),
        ("1\n2\n3", 1, [[1], [2], [3]]),
        ("1,2\n3,4", 2, [[1, 2], [3, 4]]),
        ("7", 1, [[7]]),
        ("1,a", 2, [[1, "a"]]),
        ("1,a\n2,b", 2, [[1, "a"], [2, "b"]]),
    ],
)
def test_a_model_that_knows_its_features_gets_rows(body: str, width: int, rows: list[Any]) -> None:
    """The toolkit's arrays of one dimension are none."""
    assert script_defaults.predict_fn(script_defaults.input_fn(body, CSV), Rows(width)).tolist() == rows


def test_rows_that_a_model_cannot_take() -> None:
    with pytest.raises(HandlerError, match="The model cannot take these rows: Expected 2D array") as raised:
        script_defaults.predict_fn(np.arange(3), Rows(2))
    assert raised.value.status == 400


# XGBoost: AWS's container gives a booster a DMatrix.

BOOSTER = """
import os
import xgboost

def model_fn(model_dir):
    booster = xgboost.Booster()
    booster.load_model(os.path.join(model_dir, "xgboost-model.json"))
    return booster
"""


def test_a_script_with_a_booster_and_no_more(
    load: Callable[..., Model], tmp_path: Path, restored_process: None
) -> None:
    """The published `abalone` script has only model_fn: CSV, libsvm, RecordIO and JSON are booster's own answers."""
    import xgboost
    from support.records import encode_features

    rng = np.random.default_rng(0)
    rows = rng.random((40, 3)).astype(np.float32)
    booster = xgboost.train({"max_depth": 2}, xgboost.DMatrix(rows, rows.sum(axis=1)), 3)
    booster.save_model(tmp_path / "xgboost-model.json")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(BOOSTER)
    model = load("script_handler", tmp_path)
    right = booster.predict(xgboost.DMatrix(rows[:2])).tolist()
    text = [[repr(float(value)) for value in row] for row in rows[:2]]
    bodies = {
        CSV: "\n".join(map(",".join, text)),
        "text/libsvm": "\n".join("0 " + " ".join(f"{n}:{v}" for n, v in enumerate(row)) for row in text),
        "text/x-libsvm": "\n".join("0 " + " ".join(f"{n}:{v}" for n, v in enumerate(row)) for row in text),
        "application/x-recordio-protobuf": encode_features(rows[:2].tolist()),
        JSON: json.dumps(rows[:2].tolist()),
        NPY: npy(rows[:2]),
    }
    assert {name: model.ask(body, name).json() for name, body in bodies.items()} == dict.fromkeys(bodies, right)
    assert model.ask(",".join(text[0]), CSV).json() == right[:1]
    assert (
        model.ask("0 0:0.5", "text/libsvm").json()
        == booster.predict(xgboost.DMatrix(np.array([[0.5, np.nan, np.nan]]))).tolist()
    )
    missing = booster.predict(xgboost.DMatrix(np.array([[0.5, np.nan, 0.5]]))).tolist()
    assert model.ask("0.5,,0.5", CSV).json() == missing
    assert model.ask("a,b,c", CSV).status == 400
    assert model.ask("0 x:y", "text/libsvm").status == 400
