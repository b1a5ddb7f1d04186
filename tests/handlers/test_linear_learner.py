"""Linear learner: the same numbers as by hand, from a zip or unpacked, in every format; archives that are broken."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost_handlers.base import ModelSource
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.linear_learner_handler import LinearLearnerHandler
from polyhost_handlers.ndarray_file import write_params
from support.forms import examples
from support.records import encode_features

from handlers.calling import Model, csv, npy
from handlers.test_recordio import record

FIXTURES = ROOT / "tests" / "data" / "linear_learner"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
# (features, outputs) and (1, outputs), as SageMaker's linear learner writes them.
WEIGHT = np.array([[0.5, 1.0, -0.5], [-2.0, 0.0, 0.125], [0.25, -1.0, 3.0]], "f4")
BIAS = np.array([[0.125, -1.0, 2.0]], "f4")
ROWS = np.array([[1, 2, 4], [0.5, -1, 0], [-8, 0, 1]])
OUTPUTS = {"regressor": "LinearRegressionOutput", "binary_classifier": "LogisticRegressionOutput",
           "multiclass_classifier": "SoftmaxOutput"}  # fmt: skip
# What the archive says it is, how many outputs
REGRESSOR, BINARY, CLASSES = ("regressor", 1), ("binary_classifier", 1), ("multiclass_classifier", 3)


def symbol(output: str = "LinearRegressionOutput", shape: tuple[int, ...] = (3, 1), bias: bool = True) -> str:
    def node(op: str, name: str, *inputs: int, **attrs: str) -> dict[str, Any]:
        return {"op": op, "name": name, "inputs": [[one, 0, 0] for one in inputs], "attrs": attrs}

    nodes = [node("null", "data"), node("null", "fc0_weight", __shape__=str(shape)), node("dot", "dot0", 0, 1)]
    if bias:
        nodes += [node("null", "fc0_bias"), node("broadcast_add", "broadcast_plus0", 2, 3)]
    if output:
        nodes += [node("null", "out_label"), node(output, "out", len(nodes) - 1, len(nodes))]
    return json.dumps({"nodes": nodes, "heads": [[len(nodes) - 1, 0, 0]]})


def files(predictor: str = "regressor", outputs: int = 1, **params: Any) -> dict[str, Any]:
    params = {"predictor_type": predictor, "threshold": 0.5, **params}
    return {
        "mx-mod-0000.params": {"arg:fc0_weight": WEIGHT[:, :outputs], "arg:fc0_bias": BIAS[:, :outputs]},
        "mx-mod-symbol.json": symbol(OUTPUTS[predictor], (3, outputs)),
        "additional-params.json": json.dumps(params),
        "manifest.json": '{"mx-mod": "mxnet_module", "additional-params.json": "json", "version": 1}',
    }


def put(folder: Path, contents: dict[str, Any], zipped: bool = True) -> Path:
    parts = folder / "parts" if zipped else folder
    parts.mkdir(exist_ok=True)
    for name, content in contents.items():
        if isinstance(content, dict):
            write_params(parts / name, content)
        else:
            (parts / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if zipped:
        with zipfile.ZipFile(folder / "model_algo-1", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(parts.iterdir()):
                archive.write(path, path.name)
                path.unlink()
        parts.rmdir()
    return folder


def by_hand(rows: Any = ROWS, outputs: int = 1) -> np.ndarray:
    return np.asarray(rows) @ WEIGHT[:, :outputs].astype(float) + BIAS[0, :outputs]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def expected(predictor: str, output: np.ndarray) -> dict[str, Any]:
    if predictor == "regressor":
        return {"score": output[0]}
    if predictor == "binary_classifier":
        return {"score": sigmoid(output[0]), "predicted_label": int(sigmoid(output[0]) >= 0.5)}
    powers = [math.exp(value) for value in output]
    return {"score": [power / sum(powers) for power in powers], "predicted_label": powers.index(max(powers))}


def assert_close(answers: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [list(answer) for answer in answers] == [list(one) for one in wanted]
    for answer, one in zip(answers, wanted, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(answer[name], value, rtol=1e-9)


@pytest.mark.parametrize("name", EXPECTED["scores"])
def test_the_same_scores_as_mxnet(name: str, tmp_path: Path, load: Callable[..., Model]) -> None:
    """Archives that MXNet wrote, of every kind and loss, and what MXNet predicted; the label follows the threshold."""
    shutil.copy(FIXTURES / f"{name}.zip", tmp_path / "model_algo-1")
    with zipfile.ZipFile(tmp_path / "model_algo-1") as archive:
        threshold = json.loads(archive.read("additional-params.json"))["threshold"]
    answers = load("auto", tmp_path).ask(csv(np.array(EXPECTED["rows"]))).json()["predictions"]

    scores = EXPECTED["scores"][name]
    np.testing.assert_allclose([np.atleast_1d(one["score"]) for one in answers], scores, rtol=1e-5, atol=1e-6)
    if threshold is not None:
        assert [one["predicted_label"] for one in answers] == [int(score >= threshold) for (score,) in scores]
    elif len(scores[0]) > 1:
        assert [one["predicted_label"] for one in answers] == np.argmax(scores, axis=1).tolist()
    else:
        assert "predicted_label" not in answers[0]


@pytest.mark.parametrize("handler", ["linear_learner_handler", "auto"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("predictor", "outputs"), [REGRESSOR, BINARY, CLASSES])
def test_the_same_as_by_hand(
    predictor: str, outputs: int, zipped: bool, handler: str, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """A score; for classifiers a label too, for several classes a score each."""
    model = load(handler, put(tmp_path, files(predictor, outputs), zipped))

    assert_close(
        model.ask(csv(ROWS)).json()["predictions"], [expected(predictor, row) for row in by_hand(outputs=outputs)]
    )


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (csv(ROWS), "text/csv"),
        (csv(ROWS, ";"), "text/csv"),
        (json.dumps({"instances": [{"features": row} for row in ROWS.tolist()]}).encode(), "application/json"),
        (
            json.dumps({"instances": [{"data": {"features": {"values": row}}} for row in ROWS.tolist()]}).encode(),
            "application/json",
        ),
        (
            json.dumps(
                {
                    "instances": [
                        {"data": {"features": {"keys": [0, 1, 2], "shape": [3], "values": [1, 2, 4]}}},
                        {"data": {"features": {"keys": [1, 0], "shape": [3], "values": [-1, 0.5]}}},
                        {"data": {"features": {"keys": [0, 2], "shape": [3], "values": [-8, 1]}}},
                    ],
                },
            ).encode(),
            "application/json",
        ),
        (json.dumps(ROWS.tolist()).encode(), "application/json"),
        (b"".join(json.dumps({"features": row}).encode() + b"\n" for row in ROWS.tolist()), "application/jsonlines"),
        (encode_features(ROWS), "application/x-recordio-protobuf"),
        (
            record([1, 2, 4], [0, 1, 2], [3]) + record([0.5, -1], [0, 1], [3]) + record([-8, 1], [0, 2], [3]),
            "application/x-recordio-protobuf",
        ),
    ],
)
def test_every_input(body: bytes, content_type: str, tmp_path: Path, load: Callable[..., Model]) -> None:
    """What a sparse row leaves out is zero."""
    scores = [
        one["score"] for one in load("auto", put(tmp_path, files())).ask(body, content_type).json()["predictions"]
    ]

    np.testing.assert_allclose(scores, by_hand()[:, 0])


def test_every_output(tmp_path: Path, load: Callable[..., Model]) -> None:
    """JSON by default, lines of it, CSV with the label first, a record's labels."""
    model = load("linear_learner_handler", put(tmp_path, files(*CLASSES)))
    predictions = model.ask(csv(ROWS)).json()["predictions"]

    lines = model.ask(csv(ROWS), accept="application/jsonlines").body.splitlines()
    assert [json.loads(line) for line in lines] == predictions
    rows = [[one["predicted_label"], *one["score"]] for one in predictions]
    assert model.ask(csv(ROWS), accept="text/csv").body.decode() == "\n".join(",".join(map(str, row)) for row in rows)
    answer = model.ask(csv(ROWS), accept="application/x-recordio-protobuf")
    assert np.array(predictions[0]["score"], "f4").tobytes() in answer.body
    assert answer.body.count(b"predicted_label") == len(ROWS)


@pytest.mark.parametrize(("threshold", "labels"), [(0.5, [1, 0]), (0.999, [0, 0]), (0, [1, 1])])
def test_the_threshold_of_a_binary_classifier(
    threshold: float, labels: list[int], tmp_path: Path, load: Callable[..., Model]
) -> None:
    """The archive's own; zero is a threshold too."""
    model = load("linear_learner_handler", put(tmp_path, files(*BINARY, threshold=threshold)))
    answers = model.ask(b"4,0,0\n-4,0,0").json()["predictions"]

    assert [answer["predicted_label"] for answer in answers] == labels


@pytest.mark.parametrize("bias", [True, False])
def test_a_graph_without_an_output_operator_or_a_bias(bias: bool, tmp_path: Path, load: Callable[..., Model]) -> None:
    contents = {**files(), "mx-mod-symbol.json": symbol("", bias=bias)}
    model = load("linear_learner_handler", put(tmp_path, contents))

    np.testing.assert_allclose(
        model.ask(csv(ROWS)).json()["predictions"][0]["score"], by_hand()[0, 0] - (0 if bias else BIAS[0, 0])
    )


@pytest.mark.parametrize(
    ("body", "content_type", "status", "sentence"),
    [
        (b"", "text/csv", 204, ""),
        (b"1,2", "text/csv", 400, "Each row has 2 features, the model was trained on 3."),
        (b"1,,3", "text/csv", 400, "This model cannot take missing or infinite values"),
        (b"1,inf,3", "text/csv", 400, "This model cannot take missing or infinite values"),
        (record([math.nan], [0], [3]), "application/x-recordio-protobuf", 400, "missing or infinite"),
        (record([1], [0], [4]), "application/x-recordio-protobuf", 400, "Each row has 4 features"),
        (b"1,2,x", "text/csv", 400, "'x' is not a number"),
        (b"{", "application/json", 400, "not JSON"),
        (b'{"keys": [0], "shape": [9000000], "values": [1]}', "application/json", 400, "Each row has 9000000 features"),
        (npy(ROWS), "application/x-npy", 415, "send text/csv, application/json"),
        (b"1 0:1", "text/libsvm", 415, "is not supported here"),
        (b"1e308,1e308,1e308", "text/csv", 200, ""),
    ],
)
def test_codes(
    body: bytes, content_type: str, status: int, sentence: str, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """A client's mistake is a 4xx that says what to change."""
    answer = load("linear_learner_handler", put(tmp_path, files(*CLASSES))).ask(body, content_type)

    assert answer.status == status
    assert status < 400 or sentence in answer.message


def changed(old: str, new: str) -> dict[str, str]:
    assert old in symbol()
    return {"mx-mod-symbol.json": symbol().replace(old, new)}


def params(weight: Any, bias: Any = BIAS[:, :1]) -> dict[str, Any]:
    return {"mx-mod-0000.params": {"arg:fc0_weight": np.array(weight, "f4"), "arg:fc0_bias": np.array(bias, "f4")}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"mx-mod-0000.params": None},
            "no mx-mod-0000.params among additional-params.json, manifest.json, mx-mod-symbol.json.",
        ),
        ({"mx-mod-symbol.json": None}, "no mx-mod-symbol.json among "),
        ({"additional-params.json": None}, "no additional-params.json among "),
        ({"mx-mod-0000.params": b"text"}, "its .params file is broken: it ends at byte 4, 8 more were due at 0."),
        ({"mx-mod-0000.params": b"longer text"}, "its .params file is broken: it does not begin as an NDArray list."),
        # What is not SageMaker's layout, or does not fit together, is not guessed.
        (params(WEIGHT[:, :1].T), r"mx-mod-symbol.json says that fc0_weight has the shape \(3, 1\), .* have \(1, 3\)"),
        (params(WEIGHT[:, 0]), r"mx-mod-symbol.json says that fc0_weight has the shape \(3, 1\), .* have \(3,\)"),
        (params(WEIGHT[:, :1], BIAS), r"mx-mod-symbol.json adds a bias of shape \(1, 3\) to 1 outputs"),
        (params(WEIGHT[:, :1], BIAS[:, :1][0, 0]), r"mx-mod-symbol.json adds a bias of shape \(\) to 1 outputs"),
        ({"mx-mod-0000.params": {"arg:fc0_bias": BIAS}}, "mx-mod-symbol.json has an input fc0_weight that is neither"),
        ({"mx-mod-symbol.json": "{}"}, "mx-mod-symbol.json is not an MXNet graph"),
        ({"mx-mod-symbol.json": "not JSON"}, "mx-mod-symbol.json is not an MXNet graph"),
        ({"mx-mod-symbol.json": "[" * 100_000}, "mx-mod-symbol.json is not an MXNet graph"),
        (changed('"op": "dot"', '"op": "elemwise_mul"'), "mx-mod-symbol.json has the operator elemwise_mul"),
        (changed('"broadcast_add"', '"broadcast_mul"'), "mx-mod-symbol.json has the operator broadcast_mul"),
        (changed("LinearRegressionOutput", "exp"), "mx-mod-symbol.json has the operator exp"),
        (
            changed("LinearRegressionOutput", "LogisticRegressionOutput"),
            "mx-mod-symbol.json ends in sigmoid, which a r",
        ),
        (changed("[[0, 0, 0], [1, 0, 0]]", "[[1, 0, 0], [0, 0, 0]]"), "mx-mod-symbol.json has the operator dot"),
        (
            changed("[[0, 0, 0], [1, 0, 0]]", "[[0, 0, 0], [9, 0, 0]]"),
            "mx-mod-symbol.json has a node that comes before",
        ),
        (changed("[[6, 0, 0]]", "[[0, 0, 0]]"), "mx-mod-symbol.json does not multiply its data by a weight"),
        ({"additional-params.json": "{"}, "additional-params.json is not JSON"),
        ({"additional-params.json": b"\xff"}, "additional-params.json is not JSON"),
        ({"additional-params.json": b"[" * 100_000}, "additional-params.json is not JSON"),
        (
            {"additional-params.json": "{}"},
            "additional-params.json says predictor_type None: it is none of regressor, ",
        ),
        (
            {"additional-params.json": '{"predictor_type": "poisson"}'},
            "additional-params.json says predictor_type poiss",
        ),
        (
            {"additional-params.json": '{"predictor_type": "multiclass_classifier"}'},
            "a multiclass_classifier has several",
        ),
    ],
)
def test_what_is_missing_or_broken_is_said(
    change: dict[str, Any], sentence: str, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """One sentence each."""
    contents = {name: content for name, content in {**files(), **change}.items() if content is not None}
    with pytest.raises(LoadFailed, match=rf"^Unable to load model: {sentence}"):
        load("linear_learner_handler", put(tmp_path, contents))


@pytest.mark.parametrize("threshold", [None, "high", [1], True])
def test_a_binary_classifier_without_a_threshold_is_refused(
    threshold: Any, tmp_path: Path, load: Callable[..., Model]
) -> None:
    """Its labels would be a guess."""
    with pytest.raises(LoadFailed, match=r"^Unable to load model: its threshold .* is not a number\.$"):
        load("linear_learner_handler", put(tmp_path, files(*BINARY, threshold=threshold)))


def test_a_zip_that_unpacks_to_more_than_a_linear_model_has(tmp_path: Path, load: Callable[..., Model]) -> None:
    """By what it says, before anything is unpacked; and it never unpacks to more than it says."""
    archive = tmp_path / "model_algo-1"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(3):
            with file.open(f"{number}.params", "w") as member:
                for _ in range(4):
                    member.write(bytes(2**20))
    content = archive.read_bytes()
    size = (4 * 2**20).to_bytes(4, "little")
    archive.write_bytes(content.replace(size, (512 * 2**20).to_bytes(4, "little")))
    with pytest.raises(LoadFailed, match=r"model_algo-1 unpacks to more than a linear model has"):
        load("linear_learner_handler", tmp_path)
    archive.write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    with pytest.raises(LoadFailed, match=r"model_algo-1 is not a readable zip: Bad CRC-32"):
        load("linear_learner_handler", tmp_path)


@settings(max_examples=examples(30))
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cut off anywhere, or with any bytes changed, zipped or not: a model or a sentence."""
    folder = tmp_path_factory.mktemp("damaged")
    zipped = data.draw(st.booleans())
    path = put(folder, files(*CLASSES), zipped) / ("model_algo-1" if zipped else "mx-mod-0000.params")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for position, byte in data.draw(
            st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
        ):
            content[position] = byte
    path.write_bytes(content)
    with contextlib.suppress(LoadFailed):
        LinearLearnerHandler.load(ModelSource(folder, "m", {}))
