"""scikit-learn: predictors and transformers, however they were dumped; tables with text; what cannot be loaded."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import shutil
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from conftest import ROOT
from polyhost_handlers.errors import LoadFailed
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import BaggingRegressor, HistGradientBoostingRegressor, VotingRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from handlers.calling import Model, csv, npy, npy_header

RANDOM = np.random.default_rng(3)
NUMBERS = RANDOM.normal(size=(40, 2)).round(2)
TABLE = np.column_stack([NUMBERS.astype(object), RANDOM.choice(["y", "n"], 40)])
ROWS = [[0.5, -1.0], [2.0, 3.0]]
OLD_FOLDER = ROOT / "tests" / "data" / "sklearn"
OLD = json.loads((OLD_FOLDER / "predictions.json").read_text())
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
        (b"a,b\n1,2", "text/csv", 400, "Line 1 has no numbers, a, b: the model does not know its features' names"),
        (b"1,std::bad_alloc", "text/csv", 400, "Line 1, field 2: 'std::bad_alloc' is not a number."),
        (b"1,1e999", "text/csv", 400, "Line 1, field 2: '1e999' does not fit into float64."),
        (b"[[1, 1e999]]", "application/json", 400, "does not fit into float64"),
        (b'[{"a": 1, "b": 2}]', "application/json", 400, "The model does not know the names of its features"),
        (b"1,", "text/csv", 400, "The model cannot take these rows: Input X contains NaN."),
        (b"inf,1", "text/csv", 400, "Input X contains infinity"),
        (b"\xff,1", "text/csv", 400, "not UTF-8"),
        (b'[[1, "a"]]', "application/json", 400, "Row 1, field 2: 'a' is not a number."),
        (b"[[1], 2]", "application/json", 400, "Row 2 is a int"),
        (b"[[1" + b"0" * 400 + b", 1]]", "application/json", 400, "does not fit into float64"),
        (npy([[object()]])[:60], "application/x-npy", 400, "not a .npy file"),
        (OBJECTS, "application/x-npy", 400, "dtype object: send numbers"),
        (npy([["a", "b"]]), "application/x-npy", 400, "'a' is not a number"),
        (b"1,2", "text/libsvm", 415, "send text/csv, application/json"),
    ],
)
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


FRAME = pd.DataFrame(
    {"age": [20.0, 30, 40, 50] * 9, "city": ["oslo", "rome", "02139"] * 12, "zip": ["1E5", "nan"] * 18}
)
TARGET = FRAME.age + (FRAME.city == "oslo") * 100 + (FRAME.zip == "nan") * 1000


def by_names() -> Any:
    columns = [("n", StandardScaler(), ["age"]), ("c", OneHotEncoder(handle_unknown="ignore"), ["city", "zip"])]
    return make_pipeline(ColumnTransformer(columns), LinearRegression()).fit(FRAME, TARGET)


NAMED = pd.DataFrame({"age": [20.0, 50.0], "city": ["02139", "oslo"], "zip": ["nan", "1E5"]})
SHUFFLED = NAMED[["zip", "age", "city"]]


def tensors(frame: pd.DataFrame) -> bytes:
    kinds = {"age": "FP64"}
    columns = [{"name": name, "shape": [2], "datatype": kinds.get(name, "BYTES"), "data": frame[name].tolist()}
               for name in frame]  # fmt: skip
    return json.dumps({"inputs": columns}).encode()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (NAMED.to_csv(index=False, header=False), "text/csv"),
        (NAMED.to_csv(index=False), "text/csv"),
        (SHUFFLED.to_csv(index=False), "text/csv"),
        (SHUFFLED.to_csv(index=False, sep=";"), "text/csv; header=present"),
        (SHUFFLED.to_json(orient="split"), "application/json"),
        (SHUFFLED.to_json(orient="split", index=False), "application/json"),
        (SHUFFLED.to_json(orient="records"), "application/json"),
        (SHUFFLED.to_json(orient="records", lines=True), "application/jsonlines"),
        (SHUFFLED.to_json(), "application/json"),
        (NAMED.to_json(orient="values"), "application/json"),
        (json.dumps(SHUFFLED.to_dict(orient="list")), "application/json"),
        (json.dumps({"dataframe_split": SHUFFLED.to_dict(orient="split")}), "application/json"),
        (json.dumps({"dataframe_records": SHUFFLED.to_dict(orient="records")}), "application/json"),
        (json.dumps({"instances": SHUFFLED.to_dict(orient="records")}), "application/json"),
        (json.dumps({"inputs": SHUFFLED.to_dict(orient="records")}), "application/json"),
        (json.dumps({"inputs": SHUFFLED.to_dict(orient="list")}), "application/json"),
        (json.dumps({"data": {"names": [*SHUFFLED], "ndarray": SHUFFLED.to_numpy().tolist()}}), "application/json"),
        (json.dumps({"data": {"ndarray": NAMED.to_numpy().tolist()}}), "application/json"),
        (tensors(SHUFFLED), "application/json"),
    ],
)
def test_names_of_columns_are_honoured(body: str | bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """
    In each form in which pandas, MLflow, Seldon and the Open Inference Protocol send them, in any order.
    """
    answer = serve(by_names()).ask(body, content_type)

    assert answer.status == 200, answer.message
    np.testing.assert_allclose(answer.json(), by_names().predict(NAMED))


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        ("city,age,zap\noslo,1,2", "text/csv", "unknown zap; missing zip. The model was trained on age, city, zip."),
        ("city,age,age\noslo,1,2", "text/csv", "Columns are there more than once: age."),
        ('[{"age": 1, "city": "oslo"}]', "application/json", "missing zip"),
        (
            '{"columns": ["age", "town", "zip"], "data": [[1, "a", "b"]]}',
            "application/json",
            "unknown town; missing city",
        ),
        (
            '{"columns": ["age", "city"], "data": [[1, "a", "b"]]}',
            "application/json",
            "There are 2 names for 3 columns.",
        ),
        ("oslo,30,1E5", "text/csv", "Line 1, field 1 (age): 'oslo' is not a number."),
        ("city,age,zip\noslo,x,1E5", "text/csv", "Line 2, field 1 (age): 'x' is not a number."),
        ('[[1, "oslo", 1e5]]', "application/json", "Row 1, field 3 (zip): 100000.0 is not text: put it in quotes."),
    ],
)
def test_names_that_are_not_the_models(
    body: str, content_type: str, sentence: str, serve: Callable[..., Model]
) -> None:
    """
    They are listed; a field that does not fit is named with its column.
    """
    answer = serve(by_names()).ask(body, content_type)

    assert answer.status == 400
    assert sentence in answer.message


def test_a_model_of_arrays_gets_its_columns_by_name_without_pandas(
    serve: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It only needs the right order, and no memory for pandas.
    """
    numbers = pd.DataFrame(NUMBERS, columns=["a", "b"])
    model = serve(LinearRegression().fit(numbers, numbers.a + 10 * numbers.b))

    monkeypatch.setitem(sys.modules, "pandas", None)
    assert model.ask(b"b,a\n1,2").json() == pytest.approx([12])
    assert model.ask(b"2,1").json() == pytest.approx([12])
    assert model.ask(b'[{"b": 1, "a": 2}]', "application/json").json() == pytest.approx([12])


def test_columns_that_a_model_drops_need_not_be_sent(serve: Callable[..., Model]) -> None:
    """
    scikit-learn does not ask for them either.
    """
    model = serve(ColumnTransformer([("n", "passthrough", ["age"])]).fit(FRAME))

    assert model.ask(b'[{"age": 7}]', "application/json").json() == [[7]]
    assert model.ask(b"7,oslo,x").json() == [[7]]


WORDS = np.array([["02139", "1E5", "True"], ["7", "nan", "False"]], dtype=object)


@pytest.mark.parametrize(
    "trained",
    [
        WORDS,
        WORDS.astype(str),
        np.array([[1, 2], [3, 2**53 + 1]]),
        np.array([[1.5, 2.0], [0.1, 1e20]]),
        np.array([[True, False], [False, True]]),
        np.array([[1, "1"], [2, "b"]], dtype=object),
        np.array([["a", None], ["b", "c"]], dtype=object),
        np.array([["a", np.nan], ["b", "c"]], dtype=object),
    ],
    ids=repr,
)
@pytest.mark.parametrize("encoder", [OneHotEncoder(sparse_output=False), OrdinalEncoder()], ids=["one", "ordinal"])
def test_categories_are_what_they_were(encoder: Any, trained: Any, serve: Callable[..., Model]) -> None:
    """
    Whatever they look like: each is found again in CSV, JSON and, if it goes there, npy.
    """
    encoder = encoder.fit(trained)
    model, expected = serve(encoder), encoder.transform(trained)
    fields = [["" if pd.isna(value) else value for value in row] for row in trained.tolist()]

    np.testing.assert_array_equal(model.ask("\n".join(",".join(map(str, row)) for row in fields)).json(), expected)
    rows = [[None if pd.isna(value) else value for value in row] for row in trained.tolist()]
    np.testing.assert_array_equal(model.ask(json.dumps(rows), "application/json").json(), expected)
    if trained.dtype != object:
        np.testing.assert_array_equal(model.ask(npy(trained), "application/x-npy").json(), expected)


def test_an_unknown_category_is_left_to_the_encoder(serve: Callable[..., Model]) -> None:
    """
    Its own rule and its own sentence.
    """
    strict, lenient = OneHotEncoder(), OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    assert "Found unknown categories ['13']" in serve(strict.fit([["02139"], ["7"]])).ask(b"13").message
    assert serve(lenient.fit([["02139"], ["7"]])).ask(b"13\n7").json() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("name", [None, "c"], ids=["array", "frame"])
@pytest.mark.parametrize("texts", [["a", " ", ""], ["a", "  ", "b "], ["a", np.nan, "b"], [" ", np.nan]], ids=repr)
def test_blanks_are_a_category_where_they_were_one(
    texts: list[Any], name: str | None, serve: Callable[..., Model]
) -> None:
    """
    As in the public churn data; and a row whose only text is missing is no row of numbers.
    """
    table = pd.DataFrame({"c": pd.Series(texts, dtype=object), "n": range(len(texts))})
    trained = table if name else table.to_numpy(dtype=object)
    encoder = ColumnTransformer([("c", OneHotEncoder(sparse_output=False), ["c" if name else 0])]).fit(trained)
    model, right = serve(encoder), encoder.transform(trained)

    for text, expected in zip(texts, right.tolist(), strict=True):
        missing = pd.isna(text)
        assert model.ask(f"{'' if missing else text},1.5").json() == [expected]
        assert model.ask(json.dumps([[None if missing else text, 1.5]]), "application/json").json() == [expected]


def test_a_vectorizer_beside_others_gets_texts(serve: Callable[..., Model]) -> None:
    """
    Empty ones and blanks too, also of a column that an encoder looks at; what is missing in JSON is refused.
    """
    texts, letters = ["a b", "", " ", "2020"], CountVectorizer(analyzer="char")
    table = pd.DataFrame({"text": texts, "number": range(4)})
    parts = [("letters", letters, "text"), ("known", OneHotEncoder(), ["text"]), ("number", "passthrough", ["number"])]
    for some in (parts[::2], parts):
        transformer = ColumnTransformer(some, sparse_threshold=0).fit(table)
        model = serve(transformer)
        rows = [f'"{text}",{number}' for number, text in enumerate(texts)]
        assert model.ask("\n".join(rows)).json() == transformer.transform(table).tolist()
        for row, expected in zip(rows, transformer.transform(table).tolist(), strict=True):
            assert model.ask(row).json() == [expected]
        answer = model.ask(b'[["a", 1], [null, 1]]', "application/json")
        assert (answer.status, answer.message) == (400, "Row 2, field 1 (text): null is missing: the model takes text.")


def test_an_imputer_before_an_encoder(serve: Callable[..., Model]) -> None:
    """
    What a missing field is, is what the imputer looks for.
    """
    for missing, words in ((np.nan, ["5", "a", "a"]), (None, ["5", "a", "a"]), ("", ["5", "a", "a"])):
        imputer = SimpleImputer(strategy="most_frequent", missing_values=missing)
        trained = np.array([[word] for word in [*words, missing]], dtype=object)
        pipeline = make_pipeline(imputer, OneHotEncoder(sparse_output=False)).fit(trained)
        assert serve(pipeline).ask(b"5\n\na").json() == [[1, 0], [0, 1], [0, 1]]


TEXTS = ["great loved it", "bad awful", "so bad", "2020"]


@pytest.mark.parametrize(
    "first",
    [
        TfidfVectorizer(),
        HashingVectorizer(n_features=64),
        FeatureUnion([("words", TfidfVectorizer()), ("letters", CountVectorizer(analyzer="char"))]),
        make_pipeline(CountVectorizer(), TfidfTransformer()),
        make_pipeline(FunctionTransformer(np.char.lower), TfidfVectorizer()),
    ],
    ids=["tfidf", "hashing", "union", "nested", "function"],
)
@pytest.mark.parametrize(
    ("body", "content_type", "texts"),
    [
        (b"2020\nbad\n", "text/csv", ["2020", "bad"]),
        (b"so bad\n\ngreat\n", "text/csv", ["so bad", "", "great"]),
        (b'"great, loved it"\n', "text/csv", ["great, loved it"]),
        (b"great, loved it\nbad, awful\n", "text/plain", ["great, loved it", "bad, awful"]),
        (b'["great, loved it", "2020"]', "application/json", ["great, loved it", "2020"]),
        (b"[[2020]]", "application/json", ["2020"]),
    ],
)
def test_a_model_of_texts_gets_one_a_row(
    body: bytes, content_type: str, texts: list[str], first: Any, serve: Callable[..., Model]
) -> None:
    """
    A number, a blank line and a comma are text.
    """
    model = make_pipeline(first, LogisticRegression()).fit(TEXTS, ["p", "n", "n", "p"])

    assert serve(model).ask(body, content_type).json() == model.predict(texts).tolist()


def test_a_text_with_a_comma_is_not_two(serve: Callable[..., Model]) -> None:
    """
    Two answers for one text would be worse than none.
    """
    model = serve(make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, ["p", "n", "n", "p"]))

    answer = model.ask(b"great, loved it\n")
    assert answer.status == 400
    assert (
        'put a text with a comma in double quotes, "like, this", or send the Content-Type text/plain' in answer.message
    )
    assert model.ask(b'[["great", "loved it"]]', "application/json").status == 400


def test_a_column_of_texts_beside_numbers(serve: Callable[..., Model]) -> None:
    """
    A vectorizer of one column of a table.
    """
    table = np.array([[1.0, "2020"], [2.0, "so bad"], [3.0, "1E5 bad"]], dtype=object)
    columns = [("n", "passthrough", [0]), ("t", CountVectorizer(token_pattern=r"\S+"), 1)]
    transformer = ColumnTransformer(columns, sparse_threshold=0).fit(table)

    expected = transformer.transform(np.array([[2.0, "2020"], [4.0, "bad"]], dtype=object)).astype(float)
    np.testing.assert_array_equal(serve(transformer).ask(b"2,2020\n4,bad").json(), expected)


def test_records_for_a_vectorizer_of_records(serve: Callable[..., Model]) -> None:
    """
    Each with names of its own: what is not there counts as 0.
    """
    model = serve(DictVectorizer(sparse=False).fit([{"age": 30, "city": "oslo"}, {"city": "rome"}]))

    for document in ([{"city": "rome", "age": 2}, {"age": 1}], {"instances": [{"city": "rome", "age": 2}, {"age": 1}]}):
        assert model.ask(json.dumps(document), "application/json").json() == [[2, 0, 1], [1, 0, 0]]
    assert "The model takes records" in model.ask(b"1,2").message
    assert "The model takes records" in model.ask(b"[[1, 2]]", "application/json").message


@pytest.mark.parametrize("wrap", [
    lambda model: GridSearchCV(model, {"linearregression__fit_intercept": [True]}, cv=2),
    TransformedTargetRegressor,
    lambda model: VotingRegressor([("one", model)]),
    lambda model: BaggingRegressor(model, n_estimators=2, random_state=0),
    MultiOutputRegressor,
], ids=["search", "target", "voting", "bagging", "outputs"])  # fmt: skip
def test_a_model_around_a_model_wants_the_same(wrap: Callable[[Any], Any], serve: Callable[..., Model]) -> None:
    """
    Searches, votes and their like.
    """
    if wrap(by_names()).__class__ is BaggingRegressor:  # it hands on arrays, not frames
        columns = [("n", StandardScaler(), [0]), ("c", OneHotEncoder(handle_unknown="ignore"), [1, 2])]
        model = wrap(make_pipeline(ColumnTransformer(columns), LinearRegression())).fit(FRAME.to_numpy(object), TARGET)
        expected = model.predict(NAMED.to_numpy(object))
    else:
        model = wrap(by_names())
        model.fit(FRAME, TARGET.to_frame() if isinstance(model, MultiOutputRegressor) else TARGET)
        expected = model.predict(NAMED)

    np.testing.assert_allclose(serve(model).ask(NAMED.to_csv(index=False, header=False)).json(), expected)


def test_gradient_boosting_of_categories(serve: Callable[..., Model]) -> None:
    """
    It has an encoder of its own inside.
    """
    frame = FRAME.astype({"city": "category", "zip": "category"})
    model = HistGradientBoostingRegressor(categorical_features="from_dtype", max_iter=3, min_samples_leaf=1)
    model.fit(frame, TARGET)

    rows = frame[:3]
    np.testing.assert_allclose(serve(model).ask(rows.to_csv(index=False, header=False)).json(), model.predict(rows))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"1\n2\n3", "text/csv"), (b"[1, 2, 3]", "application/json"), (npy([1.0, 2.0, 3.0]), "application/x-npy")],
)
def test_a_flat_list_for_a_model_of_one_feature(body: bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """
    A value a row: with one feature it can be nothing else.
    """
    assert serve(StandardScaler(with_mean=False, with_std=False).fit([[1.0]])).ask(body, content_type).json() == [
        [1],
        [2],
        [3],
    ]


def test_what_numpy_writes(serve: Callable[..., Model]) -> None:
    """
    numpy.savetxt's blanks and its header, numpy.savez's arrays.
    """
    model, right = serve(regression()), regression().predict(ROWS)

    for options in ({}, {"delimiter": ","}, {"delimiter": "\t"}, {"header": "a b"}, {"fmt": "%10.5f"}):
        stream = io.BytesIO()
        np.savetxt(stream, ROWS, **options)
        np.testing.assert_allclose(model.ask(stream.getvalue()).json(), right)
    stream = io.BytesIO()
    np.savez(stream, np.array(ROWS))
    np.testing.assert_allclose(model.ask(stream.getvalue(), "application/x-npz").json(), right)


@pytest.mark.parametrize("name", sorted(OLD))
def test_an_estimator_of_another_release(
    name: str, tmp_path: Path, load: Callable[..., Model], caplog: pytest.LogCaptureFixture
) -> None:
    """
    It predicts what the release that wrote it predicts, or is refused with both releases: at the load, not later.
    """
    shutil.copy(OLD_FOLDER / name, tmp_path / f"model{Path(name).suffix}")
    version = re.search(r"-([\d.]+)\.\w+$", name)[1]
    sentence = f"The model was written by scikit-learn {version}, this server has {sklearn.__version__}: "
    try:
        model = load("sklearn_handler", tmp_path)
    except LoadFailed as error:
        assert sentence in error.message  # noqa: PT017
        assert not name.startswith("logistic")
        return
    assert sentence in caplog.text
    answer = model.ask(json.dumps(OLD[name]["row"]), "application/json")
    np.testing.assert_allclose(answer.json(), OLD[name]["right"])


@pytest.mark.parametrize("opener", [open, gzip.open, bz2.open, lzma.open, None])
def test_the_release_of_a_pickle_that_does_not_load(opener: Any, tmp_path: Path, load: Callable[..., Model]) -> None:
    """
    It is read from the file itself, compressed or not.
    """
    pickled = pickle.dumps(SimpleImputer()).replace(sklearn.__version__.encode(), b"0.9.1") + b"junk"
    pickled = pickled.replace(b"SimpleImputer", b"SimplyImputer")
    if opener is None:
        (tmp_path / "model.joblib").write_bytes(zlib.compress(pickled))
    else:
        with opener(tmp_path / "model.joblib", "wb") as file:
            file.write(pickled)

    with pytest.raises(LoadFailed, match=r"The model was written by scikit-learn 0\.9\.1, this server has "):
        load("sklearn_handler", tmp_path)


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("model.joblib.gz", "gzip"),
        ("model.joblib.xz", "xz"),
        ("model.joblib.z", "zlib"),
        ("pipeline.joblib.bz2", "bz2"),
    ],
)
def test_compressed_by_its_name(name: str, compress: str, tmp_path: Path, load: Callable[..., Model]) -> None:
    """
    joblib compresses by what the name ends in.
    """
    joblib.dump(regression(), tmp_path / name, compress=(compress, 3))

    np.testing.assert_allclose(load("auto", tmp_path).ask(csv(ROWS)).json(), regression().predict(ROWS))


def test_a_pickle_in_gzip(tmp_path: Path, load: Callable[..., Model]) -> None:
    """
    By hand, without joblib.
    """
    with gzip.open(tmp_path / "model.pkl.gz", "wb") as file:
        pickle.dump(regression(), file)

    np.testing.assert_allclose(load("auto", tmp_path).ask(csv(ROWS)).json(), regression().predict(ROWS))


class Named:
    """An estimator of nobody's that was fitted on a DataFrame, and answers with what it is given."""

    n_features_in_ = 2
    feature_names_in_ = np.array(["a", "b"], dtype=object)

    def predict(self, rows: Any) -> Any:
        return np.array([type(rows).__name__, *getattr(rows, "columns", [])])


def test_a_strange_model_of_named_columns_gets_a_frame(
    serve: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Nobody knows whether it looks at the names. Without pandas it is refused at the load.
    """
    assert serve(Named()).ask(csv(ROWS)).json() == ["DataFrame", "a", "b"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoadFailed, match="it finds its columns by name, which needs pandas: pip install pandas"):
        serve(Named())


# What a column holds, beyond numbers and plain categories


def unchanged(rows: Any) -> Any:
    return rows


def as_text(rows: Any) -> Any:
    return rows.astype(str)


def halves(rows: Any) -> Any:
    return (rows // 2).astype(str)


def lengths(texts: Any) -> Any:
    return np.array([[len(text)] for text in texts])


def encoder(values: Any) -> Any:
    return OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(values)


def after(first: Any, values: Any) -> Any:
    return make_pipeline(first, OneHotEncoder(handle_unknown="ignore", sparse_output=False)).fit(values)


CODES = np.array([["02139", "a"], ["2139", "b"]], dtype=object)
EMPTY = np.array([["", "a"], ["b", "c"]], dtype=object)
SINGLE = np.array([[0.1], [0.2]], np.float32)
DAYS = pd.DataFrame({"day": pd.to_datetime(["2020-01-31", "2021-01-01"])})
COUNTS = pd.DataFrame({"count": [1, 2, 3]})
FILLED = ColumnTransformer([("filled", SimpleImputer(strategy="most_frequent"), [1])], remainder="passthrough")


@pytest.mark.parametrize(
    ("estimator", "rows", "text"),
    [
        (encoder(EMPTY), EMPTY[:1], ",a"),
        (encoder(SINGLE), SINGLE[:1], "0.1"),
        (encoder(DAYS), DAYS[:1], "2020-01-31"),
        (encoder(DAYS), DAYS[:1], "day\n2020-01-31T00:00"),
        (after(FunctionTransformer(unchanged), CODES), CODES[:1], "02139,a"),
        (after(FunctionTransformer(as_text), COUNTS), COUNTS[:2], "1\n2"),
        (after(FILLED, CODES), CODES[:1], "02139,a"),
    ],
    ids=["empty text", "float32", "date", "time", "function", "whole numbers", "passed on"],
)
def test_csv_is_what_the_encoder_has_learned(serve: Callable[..., Model], estimator: Any, rows: Any, text: str) -> None:
    answer = serve(estimator).ask(text, "text/csv")

    assert answer.json() == estimator.transform(rows).tolist()


def test_json_is_given_to_a_function_as_it_is(serve: Callable[..., Model]) -> None:
    estimator = after(FunctionTransformer(halves), COUNTS)

    answer = serve(estimator).ask('[{"count": 3}]', "application/json")

    assert answer.json() == estimator.transform(COUNTS[2:]).tolist()


def test_what_is_no_date_is_told(serve: Callable[..., Model]) -> None:
    answer = serve(encoder(DAYS)).ask("day\n31.1.2020", "text/csv")

    assert (answer.status, "31.1.2020" in answer.message) == (400, True)


def test_each_member_of_a_vote_is_asked_for_its_columns(serve: Callable[..., Model]) -> None:
    frame = pd.DataFrame({"zip": ["02139", "2139"] * 5, "x": range(10)})
    by_x = make_pipeline(ColumnTransformer([("x", StandardScaler(), ["x"])]), LinearRegression())
    by_zip = make_pipeline(ColumnTransformer([("zip", OneHotEncoder(), ["zip"])]), LinearRegression())
    vote = VotingRegressor([("x", by_x), ("zip", by_zip)]).fit(frame, np.arange(10) % 2)
    model = serve(vote)

    assert model.ask(frame[:2].to_csv(index=False), "text/csv").json() == vote.predict(frame[:2]).tolist()
    assert "missing zip" in model.ask('[{"x": 1}]', "application/json").message


def test_texts_beside_what_a_function_makes_of_them(serve: Callable[..., Model]) -> None:
    texts = ["a b", "2020 a", "b"]
    union = FeatureUnion([("words", CountVectorizer(token_pattern=r"\S+")), ("lengths", FunctionTransformer(lengths))])
    model = make_pipeline(union, LinearRegression()).fit(texts, [0, 1, 2])

    assert serve(model).ask("2020 a\nb", "text/csv").json() == model.predict(["2020 a", "b"]).tolist()


def test_a_line_of_text_ends_where_a_line_ends(serve: Callable[..., Model]) -> None:
    texts = ["a\u2028b", "b\x0bc\x85", "a"]
    model = CountVectorizer(analyzer="char").fit(texts)

    answer = serve(model).ask("\r\n".join(texts), "text/plain")

    assert answer.json() == model.transform(texts).toarray().tolist()


def test_a_header_of_texts_is_what_the_client_says(serve: Callable[..., Model]) -> None:
    model = CountVectorizer().fit(["good", "bad text"])

    answer = serve(model).ask("text\ngood", "text/csv; header=present")

    assert answer.json() == model.transform(["good"]).toarray().tolist()


def test_a_first_row_of_missing_values_is_no_header(serve: Callable[..., Model]) -> None:
    model = HistGradientBoostingRegressor(min_samples_leaf=1).fit(NUMBERS, NUMBERS[:, 0])

    answer = serve(model).ask("nan,NaN\n0.5,1", "text/csv")

    assert answer.json() == model.predict([[np.nan, np.nan], [0.5, 1]]).tolist()


@pytest.mark.parametrize(
    "document",
    [
        {"columns": ["b", "a"], "instances": [[2, 1]]},
        {"columns": ["b", "a"], "inputs": [[2, 1]]},
        {"columns": ["b", "a"], "features": [2, 1]},
        {"names": ["b", "a"], "data": {"ndarray": [[2, 1]]}},
        {"names": ["b", "a"], "data": [[2, 1]]},
        {"feature_names": ["b", "a"], "data": [[2, 1]]},
        {"instances": [{"names": ["b", "a"], "values": [2, 1]}]},
        {"instances": [{"features": {"names": ["b", "a"], "values": [2, 1]}}]},
    ],
)
def test_names_beside_rows_are_honoured(serve: Callable[..., Model], document: Any) -> None:
    frame = pd.DataFrame({"a": [1.0, 2, 4], "b": [3.0, 1, 5]})
    model = LinearRegression().fit(frame, [1, 2, 7])

    answer = serve(model).ask(json.dumps(document), "application/json")

    assert answer.json() == model.predict(pd.DataFrame({"a": [1.0], "b": [2.0]})).tolist()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('[{"a": 1, "b": 5, "b": 2}]', "more than once: b"),
        ('{"a": [1], "b": [2], "data": [[5, 5]]}', "unknown data"),
        ('{"columns": ["b", "a"], "rows": [[2, 1]]}', "without rows"),
        ('{"instances": [[2, 1]], "names": ["a"]}', "1 names for 2 columns"),
    ],
)
def test_names_that_cannot_be_honoured_are_refused(serve: Callable[..., Model], body: str, words: str) -> None:
    model = LinearRegression().fit(pd.DataFrame({"a": [1.0, 2], "b": [3.0, 1]}), [1, 2])

    answer = serve(model).ask(body, "application/json")

    assert answer.status == 400
    assert words in answer.message


# Numbers as they were in the training, of which a body says nothing: JSON writes 2 for 2.0


FLOATS = np.array([[2.0, 4.0], [1.0, 8.0], [7.5, 3.0]])
FLOAT_FRAME = pd.DataFrame(FLOATS, columns=["a", "b"])
WHOLE_FRAME = pd.DataFrame({"a": [1, 2, 3], "b": [5, 5, 6]})
IDS = pd.DataFrame({"id": [2**53 + 1, 2**60 + 1, 3]})
MIXED = pd.DataFrame({"n": [1.0, 2.0, 2.5], "yes": [True, False, True]})


def product(rows: Any) -> Any:
    return rows * 3_000_000_000 * 4_000_000_000


def inverse(rows: Any) -> Any:
    return np.power(rows, -1)


def halved_in_place(rows: Any) -> Any:
    rows = np.array(rows)
    rows[:, 0] = rows[:, 0] / 4
    return rows


def lowest_bit(rows: Any) -> Any:
    return rows & 1


def picked(rows: Any) -> Any:
    return np.arange(10)[rows]


class Quarters:
    """A transformer of nobody's, which keeps the type of what it is given."""

    def fit(self, rows: Any, target: Any = None) -> Quarters:
        return self

    def transform(self, rows: Any) -> Any:
        return halved_in_place(rows)


def function_of(column: str, function: Any) -> Any:
    return ColumnTransformer([("f", FunctionTransformer(function), [column])], remainder="passthrough")


@pytest.mark.parametrize(
    ("estimator", "trained"),
    [
        (FunctionTransformer(np.reciprocal), FLOATS),
        (FunctionTransformer(product), FLOATS),
        (FunctionTransformer(inverse), FLOATS),
        (FunctionTransformer(halved_in_place), FLOATS),
        (make_pipeline(Quarters(), StandardScaler()), FLOATS),
        (make_pipeline(FunctionTransformer(), FunctionTransformer(np.reciprocal)), FLOATS),
        (FeatureUnion([("f", FunctionTransformer(np.reciprocal)), ("s", StandardScaler())]), FLOATS),
        (FunctionTransformer(np.reciprocal), FLOAT_FRAME),
        (function_of("a", np.reciprocal), FLOAT_FRAME),
        (make_pipeline(function_of("a", None), FunctionTransformer(np.reciprocal)), FLOAT_FRAME),
        (after(FunctionTransformer(as_text), FLOATS), FLOATS),
        (after(function_of("a", as_text), FLOAT_FRAME), FLOAT_FRAME),
        (after(FunctionTransformer(as_text), WHOLE_FRAME), WHOLE_FRAME),
        (after(FunctionTransformer(as_text), WHOLE_FRAME.to_numpy()), WHOLE_FRAME.to_numpy()),
        (FunctionTransformer(lowest_bit), WHOLE_FRAME),
        (FunctionTransformer(lowest_bit), WHOLE_FRAME.to_numpy()),
        (FunctionTransformer(picked), WHOLE_FRAME.to_numpy()),
        (function_of("id", None), IDS),
        (FunctionTransformer(), IDS.to_numpy()),
        (OrdinalEncoder(), IDS.to_numpy()),
        (function_of("n", np.reciprocal), MIXED),
        (FunctionTransformer(np.logical_not), MIXED[["yes"]].to_numpy()),
    ],
    ids=[
        "reciprocal", "overflow", "power", "in place", "class", "behind nothing", "union", "frame", "column",
        "behind a passage", "text of floats", "text of a column", "text of whole numbers", "text of a whole array",
        "bits of a frame", "bits", "places", "ids", "array of ids", "encoder of ids", "booleans", "array of booleans",
    ],
)  # fmt: skip
def test_numbers_are_what_they_were_in_training(serve: Callable[..., Model], estimator: Any, trained: Any) -> None:
    estimator = estimator.fit(trained)
    right = np.asarray(estimator.transform(trained)).tolist()
    model = serve(estimator)
    rows = np.asarray(trained.astype(object)).tolist()
    shortest = [
        [int(value) if value == int(value) and not isinstance(value, bool) else value for value in row] for row in rows
    ]

    assert model.ask(json.dumps(rows), "application/json").json() == right
    for row, one in zip(shortest, right, strict=True):
        assert model.ask(json.dumps([row]), "application/json").json() == [one]
        assert model.ask(",".join(map(str, row)), "text/csv").json() == [one]
