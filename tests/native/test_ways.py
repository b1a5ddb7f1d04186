"""Which way a model is answered: its description, the metrics and the log say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xgboost
from conftest import Servers
from polyhost.engine.native.ways import Ways, in_words
from polyhost_handlers.compiled.library import library
from polyhost_handlers.compiled.rows import Way
from prometheus_client.parser import text_string_to_metric_families
from support.server import Server

ROW = b"1,2,3"


def booster(folder: Path, **parameters: object) -> Path:
    random = np.random.default_rng(3)
    rows = random.normal(size=(60, 3))
    trained = xgboost.train({"nthread": 1, **parameters}, xgboost.DMatrix(rows, rows[:, 0]), 3)
    folder.mkdir()
    (folder / "xgboost-model").write_bytes(trained.save_raw("ubj"))
    return folder


def of_vectors(folder: Path) -> Path:
    """Each leaf has two numbers."""
    rows = np.random.default_rng(3).normal(size=(60, 3))
    parameters = {"nthread": 1, "multi_strategy": "multi_output_tree", "tree_method": "hist"}
    trained = xgboost.train(parameters, xgboost.DMatrix(rows, rows[:, :2]), 3)
    folder.mkdir()
    (folder / "xgboost-model").write_bytes(trained.save_raw("ubj"))
    return folder


def samples(server: Server) -> dict[str, float]:
    text = server.request("GET", "/metrics").text
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(("polyhost_models", "polyhost_front_rows", "polyhost_compilations"))
    }


@pytest.mark.skipif(library is None, reason="the library in C was not built: there was no compiler")
def test_a_server_says_what_answers_its_models(servers: Servers, tmp_path: Path) -> None:
    """Trees are compiled; trees whose leaves are vectors are XGBoost's."""
    server = servers.get("native", environ={"SAGEMAKER_MULTI_MODEL": "true"})
    before = samples(server)
    trees = booster(tmp_path / "trees")
    vectors = of_vectors(tmp_path / "vectors")
    with server.loaded("trees", trees) as invoke, server.loaded("vectors", vectors):
        described = server.request("GET", "/models/trees").json()
        assert (described["answeredBy"], described["rowsInFront"]) == ("compiled", True)
        assert "whyNotCompiled" not in described
        described = server.request("GET", "/models/vectors").json()
        assert (described["answeredBy"], described["rowsInFront"]) == ("framework", False)
        assert described["whyNotCompiled"] == "its leaves are vectors"
        server.process.wait_for_line("model trees: it is compiled, and rows are answered in the front")
        server.process.wait_for_line("model vectors: its framework answers, because its leaves are vectors")
        for body in (ROW, ROW, b"1,2,3\n4,5,6", json.dumps([[1, 2, 3]]).encode()):
            assert invoke(body, content_type="text/csv" if body[:1] == b"1" else "application/json").status == 200
        assert {name: value - before[name] for name, value in samples(server).items()} == {
            "polyhost_models compiled": 1, "polyhost_models framework": 1,
            "polyhost_front_rows_total": 2, "polyhost_compilations_refused_total": 0,
        }  # fmt: skip

    after = samples(server)
    assert after["polyhost_models compiled"] == before["polyhost_models compiled"]
    assert after["polyhost_models framework"] == before["polyhost_models framework"]


def test_a_model_that_the_check_refused_is_counted_for_good() -> None:
    ways = Ways()
    way = Way(is_compiled=False, why_not="what was compiled differs from XGBoost", has_differed=True)
    ways.begin("model", way, in_front=False)
    ways.end(way)

    values = {sample.name: sample.value for family in ways.collect() for sample in family.samples}
    assert values["polyhost_compilations_refused_total"] == 1
    assert values["polyhost_models"] == 0


@pytest.mark.parametrize(
    ("way", "in_front", "words"),
    [
        (Way(is_compiled=True), False, "it is compiled"),
        (Way(is_compiled=True), True, "it is compiled, and rows are answered in the front"),
        (Way(False, "models of knn are not compiled"), False,
         "its framework answers, because models of knn are not compiled"),
    ],
)  # fmt: skip
def test_in_words(way: Way, in_front: bool, words: str) -> None:
    assert in_words(way, in_front=in_front) == words
