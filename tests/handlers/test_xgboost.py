"""XGBoost: every artifact loads, every format in and out says what the Booster says, errors have AWS's codes."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from conftest import ROOT
from polyhost_handlers.errors import HandlerError, LoadFailed
from polyhost_handlers.xgboost_selection import select
from support.records import encode_features

from handlers.calling import Model, csv, npy, npz
from handlers.test_recordio import record

FIXTURES = ROOT / "tests" / "data" / "xgboost"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
NAN = math.nan
RANDOM = np.random.default_rng(7)
TRAINING = RANDOM.normal(size=(120, 4))
LABELS = (np.abs(TRAINING[:, 0] + TRAINING[:, 1]) * 2).astype(int).clip(0, 2)
ROWS = np.array([[0.5, -1.25, 2, 0], [NAN, 0.75, NAN, 3], [1, 2, 3, 4]])


def train(
    folder: Path, rounds: int = 4, name: str = "xgboost-model", target: Any = None, **parameters: Any
) -> xgboost.Booster:
    target = TRAINING[:, 0] * 3 + TRAINING[:, 1] if target is None else target
    booster = xgboost.train(
        {"max_depth": 3, "nthread": 1, "verbosity": 0, **parameters}, xgboost.DMatrix(TRAINING, target), rounds
    )
    save(booster, folder / name)
    return booster


def save(booster: xgboost.Booster, path: Path) -> None:
    path.write_bytes(booster.save_raw("ubj"))


def predicted(booster: xgboost.Booster, rows: Any = ROWS, **options: Any) -> Any:
    return booster.predict(xgboost.DMatrix(rows), validate_features=False, **options).tolist()


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xgboost.Booster]:
    """A regression and the folder it lies in."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, train(folder)


@pytest.fixture
def model(plain: tuple[Path, xgboost.Booster], load: Callable[..., Model]) -> Model:
    return load("xgboost_handler", plain[0])


@pytest.mark.parametrize("handler", ["xgboost_handler", "auto"])
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_generation_predicts_what_its_release_did(
    name: str, handler: str, load: Callable[..., Model], tmp_path: Path
) -> None:
    """From 0.72 on Python 2 to 3.0, native and pickled, boosters and scikit-learn's wrappers."""
    shutil.copy(FIXTURES / name, tmp_path / "xgboost-model")
    model, case = load(handler, tmp_path), EXPECTED[name]

    answer = model.ask(json.dumps(case["rows"]), "application/json")
    np.testing.assert_allclose(answer.json(), case["predictions"], atol=1e-5)


def test_every_fixture_has_a_test() -> None:
    """A generation more is a line more in expected.json."""
    artifacts = {path.name for path in FIXTURES.iterdir() if path.is_file() and path.suffix not in (".md", ".py")}
    artifacts -= {"expected.json"}
    assert artifacts == set(EXPECTED)


def saved(rows: Any, **options: Any) -> bytes:
    """What numpy.savetxt writes."""
    stream = io.BytesIO()
    np.savetxt(stream, rows, **options)
    return stream.getvalue()


LIBSVM = b"1 0:0.5 1:-1.25 2:2 3:0\n0 1:0.75 3:3\n1 0:1 1:2 2:3 3:4"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (csv(ROWS), "text/csv"),
        (csv(ROWS), "csv; charset=utf-8"),
        (csv(ROWS), ""),
        (csv(ROWS) + b"\n", "text/csv"),
        (csv(ROWS).replace(b"\n", b"\r\n"), "text/csv"),
        (csv(ROWS, ";"), "text/csv"),
        (csv(ROWS, "\t"), "text/csv"),
        (b"0.5,-1.25,2,0\nNaN,0.75,nan,3\n1,2,3,4", "text/csv"),
        (LIBSVM, "text/libsvm"),
        (LIBSVM, "text/x-libsvm"),
        (LIBSVM, "libsvm"),
        (b"0:0.5 1:-1.25 2:2 3:0\n1:0.75 3:3\n0:1 1:2 2:3 3:4", "text/libsvm"),
        (csv(ROWS).replace(b",,", b",nan,").replace(b"\n,", b"\nnan,").replace(b",", b" "), "text/csv"),
        (b"0.5 -1.25 \t 2   0\nnan 0.75 nan 3  \n1\t2 3 4", "text/csv"),
        (b"\n    0.5,-1.25,2,0 \n    ,0.75,,3\t\n    1,2,3,4\n\t", "text/csv"),
        (b"  \n  0.5 -1.25 2 0\n  nan 0.75 nan 3\n  1 2 3 4\n  ", "text/csv"),
        (b"0.5\t-1.25\t2\t0\t\n\t0.75\t\t3\t\n1\t2\t3\t4\t\n", "text/csv"),
        (b"\t0.5\t-1.25\t2\t0\n\tnan\t0.75\t\t3\n\t1\t2\t3\t4\n", "text/csv"),
        (saved(ROWS), "text/csv"),
        (saved(ROWS, fmt="%.6g", delimiter=", "), "text/csv"),
        (saved(ROWS, fmt="%12.5f", delimiter="\t"), "text/csv"),
        (saved(ROWS, newline=" \r\n"), "text/csv"),
        (encode_features(ROWS), "application/x-recordio-protobuf"),
        (
            record([0.5, -1.25, 2, 0], [0, 1, 2, 3], [4]) + record([0.75, 3], [1, 3], [4]) + record([1, 2, 3, 4]),
            "application/x-recordio-protobuf",
        ),
        (b"[[0.5, -1.25, 2, 0], [null, 0.75, null, 3], [1, 2, 3, 4]]", "application/json"),
        (b'{"instances": [{"features": [0.5, -1.25, 2, 0]}, {"values": [null, 0.75, NaN, 3]}, {"values": [1,2,3,4]}]}',
         "application/json"),
        (b"[0.5, -1.25, 2, 0]\n[null, 0.75, null, 3]\n[1, 2, 3, 4]\n", "application/jsonlines"),
        (npy(ROWS), "application/x-npy"),
        (npy(ROWS.astype("f4")), "application/x-npy"),
        (npy(ROWS.astype(">f8")), "application/x-npy"),
        (npy(np.asfortranarray(ROWS)), "application/x-npy"),
    ],
)  # fmt: skip
def test_every_input_is_the_same_rows(
    body: bytes, content_type: str, model: Model, plain: tuple[Path, xgboost.Booster]
) -> None:
    """The prediction is the Booster's own, to the last bit."""
    assert model.ask(body, content_type).json() == predicted(plain[1])


@pytest.mark.parametrize("kind", ["?", "i1", "u8", ">i4", "f2", "longdouble"])
def test_every_kind_of_number_in_npy(kind: str, model: Model, plain: tuple[Path, xgboost.Booster]) -> None:
    """XGBoost itself takes numbers of foreign byte order for others."""
    rows = np.array([[1, 0, 1, 1]])
    assert model.ask(npy(rows.astype(kind)), "application/x-npy").json() == predicted(plain[1], rows)


def test_libsvm_counts_from_where_the_setting_says(
    load: Callable[..., Model], plain: tuple[Path, xgboost.Booster]
) -> None:
    """Whether a line names the last feature or not."""
    model = load("xgboost_handler", plain[0], POLYHOST_LIBSVM_FIRST_INDEX="1")
    counted_from_1 = b"1 1:0.5 2:-1.25 3:2 4:0\n0 2:0.75 4:3\n1 1:1 2:2 3:3 4:4"

    assert model.ask(counted_from_1, "text/libsvm").json() == predicted(plain[1])
    assert model.ask(b"1 1:1 2:2", "text/libsvm").json() == predicted(plain[1], [[1, 2, NAN, NAN]])
    assert "index 0 is none of the model's, which are 1 to 4" in model.ask(LIBSVM, "text/libsvm").message


def test_answers_in_multi_model_mode(model: Model, plain: tuple[Path, xgboost.Booster]) -> None:
    """A bare JSON array by default, values joined by commas as CSV, and the forms of selected content."""
    values = predicted(plain[1])

    answer = model.ask(csv(ROWS))
    assert (answer.content_type, answer.body) == ("application/json", json.dumps(values).encode())
    for accept in ("*/*", "application/json", "json", "text/html, application/json;q=0.9"):
        assert model.ask(csv(ROWS), accept=accept).body == answer.body
    for accept in ("text/csv", "csv"):
        answer = model.ask(csv(ROWS), accept=accept)
        assert (answer.content_type, answer.body) == ("text/csv", ",".join(map(str, values)).encode())
    answer = model.ask(csv(ROWS), accept="application/jsonlines")
    assert [json.loads(line) for line in answer.body.splitlines()] == [{"score": value} for value in values]


def test_answers_alone_in_the_container(load: Callable[..., Model], plain: tuple[Path, xgboost.Booster]) -> None:
    """CSV by default, JSON as predictions with a score each."""
    model = load("xgboost_handler", plain[0], SAGEMAKER_MULTI_MODEL="false")
    values = predicted(plain[1])

    answer = model.ask(csv(ROWS))
    assert (answer.content_type, answer.body) == ("text/csv", ",".join(map(str, values)).encode())
    answer = model.ask(csv(ROWS), accept="application/json")
    assert answer.json() == {"predictions": [{"score": value} for value in values]}


def test_batch_transform_wants_a_line_each(load: Callable[..., Model], plain: tuple[Path, xgboost.Booster]) -> None:
    """SAGEMAKER_BATCH is set there."""
    model = load("xgboost_handler", plain[0], SAGEMAKER_BATCH="true")

    assert (
        model.ask(csv(ROWS), accept="text/csv").body == "".join(f"{value}\n" for value in predicted(plain[1])).encode()
    )


def test_recordio_answers_a_record_each(model: Model, plain: tuple[Path, xgboost.Booster]) -> None:
    """The score among the labels, as float32."""
    answer = model.ask(csv(ROWS), accept="application/x-recordio-protobuf")

    assert answer.content_type == "application/x-recordio-protobuf"
    floats = np.frombuffer(b"".join(answer.body[start + 23 : start + 27] for start in range(0, 84, 28)), "f4")
    assert floats.tolist() == predicted(plain[1])
    assert answer.body[8:23] == b"\x12\x11\n\x05score\x12\x08\x12\x06\n\x04"


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
def test_the_containers_default_accept(
    accept: str, load: Callable[..., Model], plain: tuple[Path, xgboost.Booster]
) -> None:
    """SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT, where the client does not say."""
    model = load("xgboost_handler", plain[0], SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT=accept)

    assert model.ask(csv(ROWS)).content_type == accept


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "sentence"),
    [
        (b"", "text/csv", "", 204, ""),
        (b"\r\n", "text/csv", "", 204, ""),
        (b"\xef\xbb\xbf", "text/libsvm", "", 204, ""),
        (b"[]", "application/json", "", 204, ""),
        (b"1,2,3,four", "text/csv", "", 415, "Line 1, field 4: 'four' is not a number"),
        (b"a,b,c,d\n1,2,3,4", "text/csv", "", 415, "without a header line"),
        (b"1,2,3,4\n1", "text/csv", "", 415, "Line 2 has 1 fields"),
        (b"1 0:x", "text/libsvm", "", 415, "Line 1 begins '1 0:x': it is not libsvm: '0:x' is not index:value"),
        (b"1,2,3,4", "text/libsvm", "", 415, "Line 1 begins '1,2,3,4': it is not libsvm"),
        (b"1 4:1 1:1", "text/libsvm", "", 415, "index 4 is none of the model's, which are 0 to 3"),
        (b"1 2 3 4 5", "text/csv", "", 400, "Each row has 5 features"),
        (b"1 2 three 4", "text/csv", "", 415, "Line 1, field 3: 'three' is not a number"),
        (b"\t1\t2\t3\t", "text/csv", "", 400, "Each row has 5 features"),
        (b"1,2,3,4,", "text/csv", "", 400, "Each row has 5 features"),
        (b"\n 1,2,3,4\n 1,x,3,4", "text/csv", "", 415, "field 2: 'x' is not a number"),
        (b"{", "application/json", "", 415, "The body is not JSON"),
        (b"x", "application/x-recordio-protobuf", "", 415, "The record at byte 0 is cut off"),
        (b"x", "application/x-npy", "", 415, "not a .npy file"),
        (b"1,2,3,4", "image/png", "", 415, "Content-Type image/png is not supported here: send text/csv, text/libsvm"),
        (b"1,2,3,4", "text/csv", "text/html", 415, "Accept text/html is not supported here: ask for application/json"),
        (b"1,2,3", "text/csv", "", 400, "Each row has 3 features, the model was trained on 4."),
        (b"[[1, 2, 3, 4, 5]]", "application/json", "", 400, "Each row has 5 features"),
        (record([1], [0], [5]), "application/x-recordio-protobuf", "", 400, "Each row has 5 features"),
        (b"inf,2,3,4", "text/csv", "", 400, "Unable to evaluate payload provided: Input data contains `inf`"),
        (b"1e39,2,3,4", "text/csv", "", 400, "Unable to evaluate payload provided"),
        (b"1 0:inf", "text/libsvm", "", 400, "Unable to evaluate payload provided"),
    ],
)
def test_codes(body: bytes, content_type: str, accept: str, status: int, sentence: str, model: Model) -> None:
    """AWS's: nothing 204, not understood 415, understood but not for this model 400; a sentence, no stack of C++."""
    answer = model.ask(body, content_type, accept)

    assert answer.status == status
    if status == 204:
        assert answer.body == b""
    else:
        assert sentence in answer.message
        assert "[bt]" not in answer.message
        assert answer.json()["type"] == {400: "BadRequestException", 415: "UnsupportedMediaTypeException"}[status]


def test_an_ensemble_is_the_mean(tmp_path: Path, load: Callable[..., Model]) -> None:
    """All boosters of the archive, whatever they are called, in whatever format."""
    boosters = [train(tmp_path, seed + 2, f"model-{seed}", subsample=0.5, seed=seed) for seed in range(2)]
    third = train(tmp_path, 6, "third", subsample=0.5, seed=9)
    (tmp_path / "third").write_bytes(third.save_raw("json"))
    (tmp_path / "README.md").write_text("Three boosters with the objective reg:squarederror, gbtree.")
    expected = np.mean([predicted(booster) for booster in (*boosters, third)], axis=0)

    np.testing.assert_allclose(load("auto", tmp_path).ask(csv(ROWS)).json(), expected, rtol=1e-6)


def test_an_ensemble_of_classes_is_a_vote(tmp_path: Path, load: Callable[..., Model]) -> None:
    """The class that most boosters say, the smallest of those that tie."""
    boosters = [
        train(tmp_path, seed + 1, f"m{seed}", LABELS, objective="multi:softmax", num_class=3, subsample=0.3, seed=seed)
        for seed in range(3)
    ]
    rows = TRAINING[:60]
    votes = np.array([predicted(booster, rows) for booster in boosters])
    answer = load("xgboost_handler", tmp_path).ask(csv(rows)).json()

    assert len({tuple(vote) for vote in votes}) > 1
    for column, said in zip(votes.T, answer, strict=True):
        counts = {value: list(column).count(value) for value in sorted(column)}
        assert said == max(counts, key=lambda value: counts[value])


def test_an_ensemble_of_hinges_is_a_vote(tmp_path: Path, load: Callable[..., Model]) -> None:
    """0 or 1, never a third."""
    for seed in range(3):
        train(tmp_path, 1, f"m{seed}", LABELS > 0, objective="binary:hinge", subsample=0.1, seed=seed)

    assert set(load("xgboost_handler", tmp_path).ask(csv(TRAINING)).json()) <= {0.0, 1.0}


def test_an_ensemble_may_be_switched_off(tmp_path: Path, load: Callable[..., Model]) -> None:
    """AWS's SAGEMAKER_INFERENCE_ENSEMBLE=false takes the first."""
    first = train(tmp_path, 2, "a")
    train(tmp_path, 6, "b")

    assert load("xgboost_handler", tmp_path, SAGEMAKER_INFERENCE_ENSEMBLE="False").ask(csv(ROWS)).json() == predicted(
        first
    )


def test_what_is_no_ensemble_does_not_load(tmp_path: Path, load: Callable[..., Model]) -> None:
    """Boosters of other features or classes would fail at every request, as if it were the client's fault."""
    train(tmp_path, 2, "a")
    train(tmp_path, 2, "b", LABELS, objective="multi:softprob", num_class=3)

    with pytest.raises(LoadFailed, match=r"a, b differ in features or classes, so they are no ensemble"):
        load("xgboost_handler", tmp_path)


@pytest.mark.parametrize(("best", "rounds"), [("2", 3), ("5", 6), ("99", 6), ("none", 6)])
@pytest.mark.parametrize("booster_kind", ["gbtree", "dart", "gblinear"])
def test_best_iteration(booster_kind: str, best: str, rounds: int, tmp_path: Path, load: Callable[..., Model]) -> None:
    """Training that stopped early predicts with its best rounds; one that is beyond the last means all."""
    booster = train(tmp_path, 6, booster=booster_kind)
    booster.set_attr(best_iteration=best)
    save(booster, tmp_path / "xgboost-model")

    expected = predicted(booster, iteration_range=(0, rounds if booster_kind != "gblinear" else 0))
    np.testing.assert_allclose(load("xgboost_handler", tmp_path).ask(csv(ROWS)).json(), expected, rtol=1e-6)


def test_probabilities_of_classes_are_lists(tmp_path: Path, load: Callable[..., Model]) -> None:
    """In JSON; in CSV a list in brackets each, as AWS joins them."""
    booster = train(tmp_path, 3, target=LABELS, objective="multi:softprob", num_class=3)
    model = load("xgboost_handler", tmp_path)

    assert model.ask(csv(ROWS)).json() == predicted(booster)
    assert model.ask(csv(ROWS), accept="text/csv").body == ",".join(map(str, predicted(booster))).encode()


REGRESSION, BINARY, CLASSES = ["predicted_score"], LABELS > 0, {"num_class": 3}
SCORED = ["predicted_label", "labels", "raw_score", "raw_scores"]
PROBABLE = [*SCORED, "probability", "probabilities"]


@pytest.mark.parametrize(
    ("objective", "target", "options", "has"),
    [
        ("reg:squarederror", None, {}, REGRESSION),
        ("reg:absoluteerror", None, {}, REGRESSION),
        ("reg:squaredlogerror", LABELS, {}, REGRESSION),
        ("reg:pseudohubererror", None, {}, REGRESSION),
        ("count:poisson", LABELS, {}, REGRESSION),
        ("reg:logistic", BINARY, {}, REGRESSION),
        ("reg:gamma", LABELS + 1, {}, REGRESSION),
        ("reg:tweedie", LABELS + 1, {}, REGRESSION),
        ("binary:logistic", BINARY, {}, PROBABLE),
        ("binary:logitraw", BINARY, {}, SCORED),
        ("binary:hinge", BINARY, {}, SCORED),
        ("multi:softmax", LABELS, CLASSES, SCORED),
        ("multi:softprob", LABELS, CLASSES, PROBABLE),
    ],
)
def test_selected_content(
    objective: str, target: Any, options: dict[str, Any], has: list[str], tmp_path: Path, load: Callable[..., Model]
) -> None:
    """Each key as AWS documents it; one that the objective does not have is NaN."""
    booster = train(tmp_path, 3, target=target, objective=objective, **options)
    keys = [*PROBABLE, *REGRESSION, "foo"]
    model = load("xgboost_handler", tmp_path, SAGEMAKER_INFERENCE_OUTPUT=" , ".join(keys).upper())
    answers = model.ask(csv(ROWS), accept="application/json").json()["predictions"]

    for answer, raw in zip(answers, predicted(booster), strict=True):
        assert list(answer) == keys
        expected = expected_content(objective, raw)
        for key in keys:
            if key in has:
                assert answer[key] == pytest.approx(expected[key]), key
            else:
                assert math.isnan(answer[key]), key


def expected_content(objective: str, raw: Any) -> dict[str, Any]:
    """Written from AWS's documentation, not from our code."""
    if objective == "multi:softprob":
        best = raw.index(max(raw))
        label, labels, score, scores = best, [0, 1, 2], max(raw), raw
    else:
        label = {"binary:logistic": int(raw > 0.5), "binary:logitraw": int(raw > 0)}.get(objective, raw)
        labels, score, scores = (
            [0, 1, 2] if objective == "multi:softmax" else [0, 1],
            raw,
            [1 - raw, raw] if raw is not None else [],
        )
    return {
        "predicted_label": label,
        "labels": labels,
        "raw_score": score,
        "raw_scores": scores,
        "probability": score,
        "probabilities": scores,
        "predicted_score": raw,
    }


def test_selected_content_in_every_format(tmp_path: Path, load: Callable[..., Model]) -> None:
    """CSV in the order that was asked for, lists quoted; a record's labels; a line of JSON each."""
    booster = train(tmp_path, 3, target=LABELS > 0, objective="binary:logistic")
    model = load(
        "xgboost_handler", tmp_path, SAGEMAKER_INFERENCE_OUTPUT="predicted_label,probabilities,predicted_score"
    )
    values = predicted(booster)

    lines = model.ask(csv(ROWS), accept="text/csv").body.decode().split("\n")
    assert lines == [f'{int(value > 0.5)},"{[1 - value, value]}",nan' for value in values]
    first = json.loads(model.ask(csv(ROWS), accept="application/jsonlines").body.splitlines()[0])
    assert first["probabilities"] == [1 - values[0], values[0]]
    answer = model.ask(csv(ROWS), accept="application/x-recordio-protobuf")
    assert answer.body.count(b"probabilities") == answer.body.count(b"predicted_label") == len(ROWS)


def test_selected_content_of_batch_transform_ends_with_a_newline(tmp_path: Path, load: Callable[..., Model]) -> None:
    """Parts of the output are put together as they are."""
    train(tmp_path)
    model = load("xgboost_handler", tmp_path, SAGEMAKER_INFERENCE_OUTPUT="predicted_score", SAGEMAKER_BATCH="1")

    assert model.ask(csv(ROWS), accept="text/csv").body.count(b"\n") == len(ROWS)


def test_an_objective_without_selectable_content() -> None:
    """AWS has none for rankings."""
    with pytest.raises(HandlerError, match=r"no content for the objective rank:pairwise"):
        select(np.array([1.0]), ["predicted_score"], "rank:pairwise", 0)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "no XGBoost model in the archive, found nothing."),
        ({"a": b"", "b": b""}, "no XGBoost model in the archive, found a, b."),
        ({"xgboost-model": b""}, "xgboost-model is not a readable XGBoost model"),
        ({"anything": b"some text\n"}, "anything is not a readable XGBoost model"),
    ],
)
def test_an_archive_without_a_model(
    files: dict[str, bytes], sentence: str, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """AWS's words first, then what was found."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadFailed) as raised:
        load("xgboost_handler", tmp_path)

    assert raised.value.message.startswith("Unable to load model: ")
    assert sentence in raised.value.message


@pytest.mark.parametrize("options", [{}, {"objective": "multi:softprob", "num_class": 3, "target": LABELS}])
def test_requests_leave_nothing_to_the_next(
    options: dict[str, Any], tmp_path: Path, load: Callable[..., Model]
) -> None:
    """One row, many, none that it takes, one again: each answer is the Booster's own, to the last bit."""
    booster = train(tmp_path, **options)
    model = load("xgboost_handler", tmp_path)
    for rows in (ROWS[:1], TRAINING, ROWS[1:2], TRAINING[:7], ROWS[2:], ROWS):
        assert model.ask(csv(rows)).json() == predicted(booster, rows)
        assert model.ask(b"inf,2,3,4").status == 400
        assert model.ask(b"1,2,3").status == 400


@pytest.mark.parametrize("field", ["1_0", "1_000.5", "\uff11", "\u0661", "0x1F", "1d5", "1.5e", "1 0", "True", "+-1"])
def test_a_number_of_one_language_alone_is_none(field: str, model: Model) -> None:
    """Beside a missing value or not. Python reads `1_0` as 10, and the digits of every script."""
    for row in (f"{field},1,2,3", f"{field},1,2,", f'"{field}",1,2,3'):
        assert model.ask(row, "text/csv").status == 415
    assert model.ask(json.dumps([[field, 1, 2, 3]]), "application/json").status == 415


@pytest.mark.parametrize("field", [" 1.5 ", "+1.5", "15e-1", "1.50", '"1.5"', "01.5", "1.5E0"])
def test_a_number_however_it_is_written(field: str, model: Model) -> None:
    """In quotes too, as RFC 4180 lets any field be."""
    assert model.ask(f"{field},1,.5,3.", "text/csv").body == model.ask(b"1.5,1,0.5,3").body
    assert model.ask(f"{field},1,NaN,", "text/csv").body == model.ask(b"1.5,1,nan,nan").body


NAMES = ["a", "b", "c", "d"]
ONE_ROW = [0.5, -1.25, 2.0, 7.0]


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A booster that knows the names of its features, and what it predicts for one row."""
    folder = tmp_path_factory.mktemp("named")
    data = xgboost.DMatrix(TRAINING, TRAINING @ [1, 10, 100, 1000], feature_names=NAMES)
    booster = xgboost.train({"max_depth": 3, "nthread": 1, "verbosity": 0}, data, 4)
    save(booster, folder / "xgboost-model")
    return folder, booster.predict(xgboost.DMatrix([ONE_ROW], feature_names=NAMES)).tolist()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"0.5,-1.25,2,7", "text/csv"),
        (b"a,b,c,d\n0.5,-1.25,2,7", "text/csv"),
        (b"d,c,b,a\n7,2,-1.25,0.5\n", "text/csv"),
        (b"d;c;b;a\n7;2;-1.25;0.5\n", "text/csv"),
        (b'{"columns": ["d", "c", "b", "a"], "data": [[7, 2, -1.25, 0.5]]}', "application/json"),
        (b'{"dataframe_split": {"columns": ["d", "c", "b", "a"], "data": [[7, 2, -1.25, 0.5]]}}', "application/json"),
        (b'[{"d": 7, "c": 2, "b": -1.25, "a": 0.5}]', "application/json"),
        (b'{"instances": [{"d": 7, "c": 2, "b": -1.25, "a": 0.5}]}', "application/json"),
        (b'{"d": {"0": 7}, "c": {"0": 2}, "b": {"0": -1.25}, "a": {"0": 0.5}}', "application/json"),
        (b'{"d": 7, "c": 2, "b": -1.25, "a": 0.5}', "application/jsonlines"),
        (b'{"data": {"names": ["d", "c", "b", "a"], "ndarray": [[7, 2, -1.25, 0.5]]}}', "application/json"),
        (npz(d=[7.0], c=[2.0], b=[-1.25], a=[0.5]), "application/x-npz"),
        (npz(arr_0=[ONE_ROW]), "application/x-npz"),
    ],
)
def test_names_of_features_are_honoured(
    body: bytes, content_type: str, named: tuple[Path, list[float]], load: Callable[..., Model]
) -> None:
    """In any order and in each form that has names."""
    folder, right = named

    assert load("xgboost_handler", folder).ask(body, content_type).json() == right


@pytest.mark.parametrize(
    ("body", "content_type", "status", "sentence"),
    [
        (b"d,c,b,x\n7,2,-1.25,0.5", "text/csv", 400, "unknown x; missing a. The model was trained on a, b, c, d."),
        (b"d,c,b,b\n7,2,-1.25,0.5", "text/csv", 400, "Columns are there more than once: b."),
        (b"d,c,b\n7,2,-1.25", "text/csv", 400, "missing a"),
        (b'[{"d": 7, "c": 2, "b": 1}]', "application/json", 400, "missing a"),
        (b"1,2,3,x", "text/csv", 415, "Line 1, field 4: 'x' is not a number"),
    ],
)
def test_names_that_are_not_the_boosters(
    body: bytes,
    content_type: str,
    status: int,
    sentence: str,
    named: tuple[Path, list[float]],
    load: Callable[..., Model],
) -> None:
    """A list of them, and no prediction."""
    answer = load("xgboost_handler", named[0]).ask(body, content_type)

    assert (answer.status, sentence in answer.message) == (status, True), answer.message


def test_a_booster_without_names_counts_positions(model: Model, plain: tuple[Path, xgboost.Booster]) -> None:
    """Columns have an order, records have none."""
    right = predicted(plain[1], np.array([ONE_ROW]))
    tensors = [{"name": name, "shape": [1], "datatype": "FP32", "data": [value]}
               for name, value in zip("wxyz", ONE_ROW, strict=True)]  # fmt: skip
    for document in ({"columns": ["w", "x", "y", "z"], "data": [ONE_ROW]}, {"inputs": tensors}):
        assert model.ask(json.dumps(document), "application/json").json() == right
    answer = model.ask(b'[{"w": 1, "x": 2, "y": 3, "z": 4}]', "application/json")
    assert (answer.status, "JSON objects have no order" in answer.message) == (400, True)
    assert model.ask(b"w,x,y,z\n1,2,3,4").status == 415


def test_a_number_that_is_too_large_is_no_infinity(model: Model) -> None:
    """It would be one feature's largest value."""
    assert model.ask(b"1,2,3,1e999\n1,2,3,4").status == 415
    assert model.ask(b"[[1, 2, 3, 1e999]]", "application/json").status == 415


def test_a_booster_needs_no_pandas(plain: tuple[Path, xgboost.Booster]) -> None:
    """Under the real MMS each model's process would pay for it."""
    code = f"""
import sys
from pathlib import Path
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.xgboost_handler import XGBoostHandler

model = XGBoostHandler.load(ModelSource(Path({str(plain[0])!r}), "m", {{}}))
assert model.predict(Request(b"1,2,3,4")).status == 200
assert not [name for name in sys.modules if name.startswith("pandas")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_sparse_row_of_json_does_not_name_is_missing(tmp_path: Path, load: Callable[..., Model]) -> None:
    """As in libsvm and RecordIO, and in XGBoost's own sparse matrices."""
    rows = np.random.default_rng(5).normal(size=(200, 3))
    rows[rows < -0.5] = np.nan
    booster = xgboost.train({"max_depth": 3}, xgboost.DMatrix(rows, np.isnan(rows).sum(1)), 5)
    save(booster, tmp_path / "xgboost-model")
    model = load("xgboost_handler", tmp_path)

    document = {"data": {"features": {"keys": [1], "shape": [3], "values": [1.5]}}}
    answer = model.ask(json.dumps(document), "application/json", "text/csv")

    (right,) = booster.predict(xgboost.DMatrix([[np.nan, 1.5, np.nan]])).tolist()
    assert float(answer.body) == right
    for keys in ([1.7], [1, 1]):
        broken = {"keys": keys, "shape": [3], "values": [1.5] * len(keys)}
        assert model.ask(json.dumps(broken), "application/json").status == 415


def test_an_ensemble_of_differently_ordered_features_is_refused(tmp_path: Path, load: Callable[..., Model]) -> None:
    rows = np.random.default_rng(5).normal(size=(50, 2))
    for number, names in enumerate((["a", "b"], ["b", "a"])):
        matrix = xgboost.DMatrix(rows, rows[:, number], feature_names=names)
        save(xgboost.train({}, matrix, 2), tmp_path / f"xgboost-model-{number}")

    with pytest.raises(LoadFailed, match="differ in their features' names"):
        load("xgboost_handler", tmp_path)


def test_names_that_are_numbers_need_a_word_of_the_client(tmp_path: Path, load: Callable[..., Model]) -> None:
    """pandas counts columns that have no names, and writes 0,1,2 as a CSV's first line."""
    rows = np.random.default_rng(5).normal(size=(50, 3))
    booster = xgboost.train({}, xgboost.DMatrix(rows, rows @ [1, 2, 3], feature_names=["0", "1", "2"]), 5)
    save(booster, tmp_path / "xgboost-model")
    model = load("xgboost_handler", tmp_path)
    body = "2,1,0\n0.3,0.2,0.1"

    answer = model.ask(body, "text/csv; header=present", "text/csv")

    right = booster.predict(xgboost.DMatrix([[0.1, 0.2, 0.3], [2, 1, 0], [0.3, 0.2, 0.1]]), validate_features=False)
    assert float(answer.body) == right[0]
    answer = model.ask(body, "text/csv; header=absent", "text/csv")
    assert [float(value) for value in answer.body.split(b",")] == right[1:].tolist()
    refused = model.ask(body, "text/csv")
    assert (refused.status, "header=present" in refused.message) == (415, True)


@pytest.mark.parametrize("default", ["", "text/csv"])
@pytest.mark.parametrize(
    "content_type", ["text/csv; header=present", "text/csv;HEADER=Present", "csv; a=b; header = present"]
)
@pytest.mark.parametrize("accept", ["", "text/csv", "application/json"])
def test_a_line_that_is_called_a_header_is_never_a_row(
    content_type: str, accept: str, default: str, plain: tuple[Path, xgboost.Booster], load: Callable[..., Model]
) -> None:
    """However often it is asked: the first request of a kind goes another way than those behind it."""
    environ = {"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": default} if default else {}
    model = load("xgboost_handler", plain[0], SAGEMAKER_MULTI_MODEL="true", **environ)

    assert [model.ask("1,2,3,4\n", content_type, accept).status for _ in range(3)] == [204, 204, 204]
