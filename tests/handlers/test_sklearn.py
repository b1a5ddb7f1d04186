"""scikit-learn: predictors and transformers, however they were dumped; tables with text; what cannot be loaded."""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from polyhost_handlers.errors import LoadFailed
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from handlers.calling import Model, csv, npy, npy_header

RANDOM = np.random.default_rng(3)
NUMBERS = RANDOM.normal(size=(40, 2)).round(2)
TABLE = np.column_stack([NUMBERS.astype(object), RANDOM.choice(["y", "n"], 40)])
ROWS = [[0.5, -1.0], [2.0, 3.0]]
OBJECTS = npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(1))


def regression() -> Any:
    return LinearRegression().fit(NUMBERS, NUMBERS[:, 0] * 2)


def preprocessor() -> Any:
    columns = [("numbers", StandardScaler(), [0, 1]), ("yes_or_no", OneHotEncoder(), [2])]
    return ColumnTransformer(columns, sparse_threshold=0).fit(TABLE)


@pytest.fixture
def serve(tmp_path: Path, load: Callable[..., Model]) -> Callable[..., Model]:
    def served(estimator: Any, **environ: str) -> Model:
        joblib.dump(estimator, tmp_path / "model.joblib")
        return load("sklearn_handler", tmp_path, **environ)

    return served


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (csv(ROWS), "text/csv"),
        (csv(ROWS), ""),
        (b"[[0.5, -1], [2, 3]]", "application/json"),
        (b'{"instances": [{"features": [0.5, -1]}, {"features": [2, 3]}]}', "application/json"),
        (b"[0.5, -1]\n[2, 3]", "application/jsonlines"),
        (npy(ROWS), "application/x-npy"),
        (npy(np.array(ROWS, ">f4")), "application/x-npy"),
    ],
)
def test_a_predictor_predicts(body: bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """
    The same rows in every format.
    """
    answer = serve(regression()).ask(body, content_type)

    assert answer.content_type == "application/json"
    np.testing.assert_allclose(answer.json(), regression().predict(ROWS))


def test_answers_in_every_format(serve: Callable[..., Model]) -> None:
    """
    JSON, CSV and npy; the container may set the default.
    """
    model, values = serve(regression(), SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="text/csv"), regression().predict(ROWS)

    answer = model.ask(csv(ROWS))
    assert (answer.content_type, answer.body) == ("text/csv", "\n".join(map(str, values.tolist())).encode())
    assert model.ask(csv(ROWS), accept="application/json").json() == values.tolist()
    np.testing.assert_array_equal(np.load(io.BytesIO(model.ask(csv(ROWS), accept="application/x-npy").body)), values)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"0.5,-1,y\n2,3,n", "text/csv"),
        (b'0.5,-1,"y"\r\n2,3,n\r\n', "text/csv"),
        (b'[[0.5, -1, "y"], [2, 3, "n"]]', "application/json"),
        (b'[0.5, -1, "y"]\n{"features": [2, 3, "n"]}', "application/jsonlines"),
    ],
)
def test_a_transformer_transforms_text_columns_too(body: bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """
    The first step of an inference pipeline: its answer is the next one's CSV.
    """
    expected = preprocessor().transform(np.array([[0.5, -1, "y"], [2, 3, "n"]], dtype=object))
    model = serve(preprocessor())

    np.testing.assert_allclose(model.ask(body, content_type).json(), expected)
    lines = model.ask(body, content_type, "text/csv").body.decode().splitlines()
    np.testing.assert_allclose([[float(field) for field in line.split(",")] for line in lines], expected)


def test_a_sparse_answer_is_made_dense(serve: Callable[..., Model]) -> None:
    """
    An encoder's matrix in every format.
    """
    model = serve(OneHotEncoder().fit([["a"], ["b"]]))

    assert model.ask(b"a\nb").json() == [[1, 0], [0, 1]]
    assert model.ask(b"a\nb", accept="text/csv").body == b"1.0,0.0\n0.0,1.0"
    assert np.load(io.BytesIO(model.ask(b"a\nb", accept="application/x-npy").body)).tolist() == [[1, 0], [0, 1]]


def test_missing_values_of_a_table_with_text(serve: Callable[..., Model]) -> None:
    """
    An empty field and null are what an imputer fills.
    """
    columns = [("numbers", SimpleImputer(), [0]), ("text", OneHotEncoder(handle_unknown="ignore"), [1])]
    model = serve(ColumnTransformer(columns, sparse_threshold=0).fit(np.array([[1, "y"], [3, "n"]], dtype=object)))

    assert model.ask(b",y").json() == model.ask(b'[[null, "y"]]', "application/json").json() == [[2, 0, 1]]
    assert model.ask(b"5,\n,y").json() == [[5, 0, 0], [2, 0, 1]]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'good day\n"bad, bad night"', "text/csv"),
        (b'[["good day"], ["bad, bad night"]]', "application/json"),
        (b'["good day", "bad, bad night"]', "application/json"),
        (b'["good day"]\n["bad, bad night"]', "application/jsonlines"),
    ],
)
def test_a_classifier_of_texts(body: bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """
    A vectorizer takes a list of texts, and a label with a comma in it is one field of CSV.
    """
    texts = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
        ["good day", "bad night"], ["fine", "not so, no"]
    )
    model = serve(texts)

    assert model.ask(body, content_type).json() == ["fine", "not so, no"]
    assert model.ask(body, content_type, "text/csv").body == b'fine\n"not so, no"'


def test_labels_that_are_objects(serve: Callable[..., Model]) -> None:
    """
    Text in JSON and CSV; .npy would need a pickle.
    """
    model = serve(LogisticRegression().fit(NUMBERS, np.where(NUMBERS[:, 0] > 0, "up", "down").astype(object)))

    assert set(model.ask(csv(ROWS)).json()) <= {"up", "down"}
    answer = model.ask(csv(ROWS), accept="application/x-npy")
    assert (answer.status, answer.message) == (
        415,
        "The prediction is not numeric, so it has no .npy form: ask for application/json.",
    )


def test_what_predicts_and_transforms_predicts(serve: Callable[..., Model]) -> None:
    """
    k-means answers with clusters, not with distances.
    """
    assert all(isinstance(label, int) for label in serve(KMeans(2, n_init=1).fit(NUMBERS)).ask(csv(ROWS)).json())


@pytest.mark.parametrize(
    ("body", "content_type", "status", "sentence"),
    [
        (b"", "text/csv", 204, ""),
        (b"\xef\xbb\xbf", "text/csv", 204, ""),
        (npy(np.zeros((0, 2))), "application/x-npy", 204, ""),
        (b"1,2,3", "text/csv", 400, "Each row has 3 features, the model was trained on 2."),
        (b"1,2\n3", "text/csv", 400, "Line 2 has 1 fields, line 1 has 2"),
        (b"a,b\n1,2", "text/csv", 400, "The model cannot take these rows: could not convert string to float: 'a'"),
        (b"1,std::bad_alloc", "text/csv", 400, "could not convert string to float: 'std::bad_alloc'"),
        (b"1,", "text/csv", 400, "The model cannot take these rows: Input X contains NaN."),
        (b"inf,1", "text/csv", 400, "Input X contains infinity"),
        (b"\xff,1", "text/csv", 400, "not UTF-8"),
        (b'[[1, "a"]]', "application/json", 400, "could not convert string to float"),
        (b"[[1], 2]", "application/json", 400, "Row 2 is a int"),
        (b"[[1" + b"0" * 400 + b", 1]]", "application/json", 400, "not a number"),
        (npy([[object()]])[:60], "application/x-npy", 400, "not a .npy file"),
        (OBJECTS, "application/x-npy", 400, "dtype object: send numbers"),
        (npy([["a", "b"]]), "application/x-npy", 400, "send rows of numbers"),
        (b"1,2", "text/libsvm", 415, "send text/csv, application/json"),
    ],
)  # fmt: skip
def test_codes(body: bytes, content_type: str, status: int, sentence: str, serve: Callable[..., Model]) -> None:
    """
    A client's mistake is a 4xx; no words of a client's make it a lack of memory.
    """
    answer = serve(regression()).ask(body, content_type)

    assert answer.status == status
    assert status == 204 or sentence in answer.message


def test_a_category_that_means_memory(serve: Callable[..., Model]) -> None:
    """
    scikit-learn's error quotes it: a 507 would have every other model unloaded.
    """
    model = serve(OneHotEncoder().fit([["a"], ["b"]]))

    for words in (b"std::bad_alloc", b"Failed to allocate CPU Memory", b"CUDA out of memory"):
        answer = model.ask(words)
        assert answer.status == 400
        assert words.decode() in answer.message


def dump_joblib(compress: Any) -> Callable[[Any, Path], None]:
    return lambda estimator, folder: joblib.dump(estimator, folder / "model.joblib", compress=compress) and None


def dump_pickle(name: str, protocol: int) -> Callable[[Any, Path], None]:
    return lambda estimator, folder: (folder / name).write_bytes(pickle.dumps(estimator, protocol)) and None


@pytest.mark.parametrize("handler", ["sklearn_handler", "auto"])
@pytest.mark.parametrize(
    "dump",
    [
        dump_joblib(0),
        dump_joblib(("zlib", 3)),
        dump_joblib(("gzip", 3)),
        dump_joblib(("bz2", 3)),
        dump_joblib(("xz", 3)),
        dump_joblib(("lzma", 3)),
        *(dump_pickle("model.pkl", protocol) for protocol in range(6)),
        dump_pickle("anything.pickle", 4),
        dump_pickle("model", 4),
    ],
)
def test_however_it_was_dumped(
    dump: Callable[[Any, Path], None], handler: str, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """
    joblib with every compressor, and plain pickles of every protocol.
    """
    dump(regression(), tmp_path)

    np.testing.assert_allclose(load(handler, tmp_path).ask(csv(ROWS)).json(), regression().predict(ROWS))


def test_model_joblib_is_the_model_among_other_pickles(tmp_path: Path, load: Callable[..., Model]) -> None:
    """
    Without that name several pickles are a question that only their owner can answer.
    """
    for name in ("a.pkl", "b.pkl"):
        dump_pickle(name, 4)(preprocessor(), tmp_path)
    with pytest.raises(LoadFailed, match=r"several pickles \(a.pkl, b.pkl\); name the model's own model.joblib"):
        load("sklearn_handler", tmp_path)
    joblib.dump(regression(), tmp_path / "model.joblib")
    assert load("sklearn_handler", tmp_path).ask(csv(ROWS)).status == 200


def test_a_module_that_is_missing_is_named(
    tmp_path: Path, load: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The customer's own, which the archive does not bring.
    """
    module = types.ModuleType("their_features")
    exec("def double(x):\n    return x * 2\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "their_features", module)
    joblib.dump(FunctionTransformer(module.double), tmp_path / "model.joblib")
    monkeypatch.delitem(sys.modules, "their_features")

    with pytest.raises(
        LoadFailed, match=r"model.joblib needs the Python module their_features, which is not installed here"
    ):
        load("sklearn_handler", tmp_path)


@pytest.mark.parametrize("compress", [0, 3, ("xz", 3)], ids=str)
def test_a_pickle_that_is_cut_off(compress: Any, tmp_path: Path, load: Callable[..., Model]) -> None:
    """
    A sentence, whatever it makes Python do; never a MemoryError, which would be tried again for ever.
    """
    path = tmp_path / "model.joblib"
    joblib.dump(preprocessor(), path, compress=compress)
    content = path.read_bytes()
    for length in range(0, len(content) - 20, len(content) // 25):
        path.write_bytes(content[:length])
        with pytest.raises(LoadFailed, match=r"^Unable to load model: model.joblib cannot be unpickled: ."):
            load("sklearn_handler", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",  # bytes that no machine has
        b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",
        b"\x80\x04cnumpy\nempty\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",  # an array of 2**44 numbers
    ],
)
def test_a_broken_pickle_that_asks_for_absurd_amounts(
    content: bytes, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """
    It is broken, memory is not short.
    """
    (tmp_path / "model.joblib").write_bytes(content)
    with pytest.raises(LoadFailed, match=r"cannot be unpickled"):
        load("sklearn_handler", tmp_path)


@pytest.mark.parametrize("thing", [{"model": 1}, DBSCAN(), np.eye(2)], ids=["dict", "DBSCAN", "array"])
def test_what_can_neither_predict_nor_transform(thing: Any, tmp_path: Path, load: Callable[..., Model]) -> None:
    """
    Its class is named.
    """
    joblib.dump(thing, tmp_path / "model.joblib")
    sentence = f"^Unable to load model: model.joblib holds a {type(thing).__name__}, which cannot predict nor transform"
    with pytest.raises(LoadFailed, match=sentence):
        load("sklearn_handler", tmp_path)


def test_an_archive_without_a_pickle(tmp_path: Path, load: Callable[..., Model]) -> None:
    """
    What was found instead.
    """
    (tmp_path / "weights.h5").touch()
    with pytest.raises(LoadFailed, match=r"no model.joblib or .* in the archive, found weights.h5"):
        load("sklearn_handler", tmp_path)


class Named:
    """An estimator that was fitted on a DataFrame, and answers with what it is given."""

    n_features_in_ = 2
    feature_names_in_ = np.array(["a", "b"], dtype=object)

    def predict(self, rows: Any) -> Any:
        return np.array([type(rows).__name__, *getattr(rows, "columns", [])])


class DataFrame:
    def __init__(self, table: Any, columns: Any) -> None:
        self.table, self.columns = table, columns

    def infer_objects(self) -> DataFrame:
        return self


def test_a_model_of_named_columns_gets_them_where_pandas_is(
    serve: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Fitted on a DataFrame: a DataFrame with the same names, else the columns by position.
    """
    model = serve(Named())

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=DataFrame))
    assert model.ask(csv(ROWS)).json() == ["DataFrame", "a", "b"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert model.ask(csv(ROWS)).json() == ["ndarray"]
