"""A server on the state folder of an earlier release: endpoints are as they were, the cache is made anew."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from pathlib import Path

import pytest
from conftest import ROOT
from polyhost.artifacts.entries import newest_whole
from support.endpoint import EndpointServer

HOUSE = "1998,2150,3,2.5,0.4,2"
# As 0.1.0 wrote it: without the files' digests and times, by which a later release sees that nobody has changed them.
META = {"key": "boston.tar.gz", "version": "1795737436568232969-11885-2154977", "archive_bytes": 11885}


@pytest.fixture
def models(tmp_path: Path, samples_folder: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("boston", "houston"):
        shutil.copy(samples_folder / f"{name}.tar.gz", folder)
    return folder


def state_of_0_1_0(folder: Path, models: Path) -> Path:
    """With a model in its disk cache, whose file is none: whoever reads it would not load."""
    entry = folder / "cache" / "models" / "c5376bc58b117b578c1cfde7-ab14f3b7"
    (entry / "model").mkdir(parents=True)
    (entry / "model" / "xgboost-model").write_bytes(b"as 0.1.0 unpacked it")
    meta = {"source": f"{models}/", **META, "files": {"xgboost-model": 20}}
    (entry / "meta.json").write_text(json.dumps(meta))
    connection = sqlite3.connect(folder / "state.sqlite3")
    script = (ROOT / "tests" / "data" / "state" / "0.1.0.sql").read_text()
    connection.executescript(script.replace("MODELS", str(models)))
    connection.close()
    return folder


@pytest.mark.second_stage
def test_the_state_of_0_1_0_is_served_without_a_hand(tmp_path: Path, models: Path) -> None:
    """Multi-model and single-model endpoints, variants, environments and tags; and it is as good for a second start."""
    folder = tmp_path / "state"
    folder.mkdir()
    state_of_0_1_0(folder, models)
    for _ in range(2):
        server = EndpointServer("native", models, state=folder)
        try:
            sagemaker, runtime = server.client("sagemaker"), server.client("sagemaker-runtime")
            assert {one["EndpointName"] for one in sagemaker.list_endpoints()["Endpoints"]} == {
                "ab",
                "many",
                "polyhost",
            }
            sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="ab", WaiterConfig={"Delay": 1})
            described = sagemaker.describe_endpoint(EndpointName="ab")
            weights = {one["VariantName"]: one["CurrentWeight"] for one in described["ProductionVariants"]}
            assert weights == {"a": 1.0, "b": 3.0}
            assert described["CreationTime"].timestamp() == pytest.approx(1795737438.785)
            model = sagemaker.describe_model(ModelName="Many")
            assert model["PrimaryContainer"]["Environment"] == {"SECRET": "xyz"}
            assert sagemaker.list_tags(ResourceArn=model["ModelArn"])["Tags"] == [{"Key": "team", "Value": "homes"}]

            def invoke(endpoint: str, **more: str) -> float:
                answer = runtime.invoke_endpoint(  # noqa: B023 - called in its round
                    EndpointName=endpoint, ContentType="text/csv", Body=HOUSE, **more
                )
                return float(answer["Body"].read().decode().strip("[]\n"))

            boston = invoke("polyhost", TargetModel="boston.tar.gz")
            assert invoke("many", TargetModel="boston.tar.gz") == boston
            assert invoke("ab", TargetVariant="b", TargetModel="boston.tar.gz") == boston
            assert invoke("ab", TargetVariant="a") == invoke("many", TargetModel="houston.tar.gz") != boston
            log = server.process.log
        finally:
            assert server.stop() == 0
        assert "ERROR" not in log
        assert "Traceback" not in log
    assert "another release" not in log  # at the second start


def test_a_cache_of_another_release_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However many models it had; a later release's as well. Its archives are fetched again when they are called."""
    caplog.set_level(logging.INFO)
    for number, files in enumerate(({"model": 3}, {"model": {"bytes": 3, "digest": "blake3:…"}}, {}, None)):
        entry = tmp_path / str(number)
        (entry / "model").mkdir(parents=True)
        (entry / "model" / "model").write_bytes(b"abc")
        (entry / "meta.json").write_text(json.dumps({"source": "s3://b/", **META, "files": files}))
    assert newest_whole(sorted(tmp_path.iterdir())) == ([], 0)
    assert [*tmp_path.iterdir()] == []
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("4 models in the disk cache are not whole, or of another release")
