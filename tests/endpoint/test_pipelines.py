"""Endpoints that clients make: pipelines, variants, containers with variables and code of their own."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, WaiterError
from prometheus_client.parser import text_string_to_metric_families
from support.endpoint import EndpointServer, packed
from support.tree import wait_until

ROLE = "arn:aws:iam::000000000000:role/any"
HOUSE = "1998,2150,3,2.5,0.4,2"
RAW = f"{HOUSE},y,n"
SAYS = """
import json, os

def model_fn(model_dir):
    return {"model": open(model_dir + "/name.txt").read(), "variable": os.environ.get("SAYS", "")}

def input_fn(body, content_type):
    return body if isinstance(body, str) else body.decode()

def predict_fn(data, model):
    return {**model, "data": data}

def output_fn(prediction, accept):
    return json.dumps(prediction)
"""

# In the shape of AWS's published preprocessor for scikit-learn's container.
PREPROCESSES = """
import json
import os
from io import StringIO

import pandas as pd
from sagemaker_containers.beta.framework import encoders, worker
from sklearn.externals import joblib

NAMES = ["year", "feet", "bedrooms", "bathrooms", "lot", "garage", "deck", "porch"]


def model_fn(model_dir):
    return joblib.load(os.path.join(model_dir, "model.joblib"))


def input_fn(input_data, content_type):
    if content_type != "text/csv":
        raise ValueError("{} not supported by script!".format(content_type))
    return pd.read_csv(StringIO(input_data), header=None, names=NAMES)


def predict_fn(input_data, model):
    return model.transform(input_data)


def output_fn(prediction, accept):
    if accept == "application/json":
        instances = [{"features": row} for row in prediction.tolist()]
        return worker.Response(json.dumps({"instances": instances}), accept, mimetype=accept)
    return worker.Response(encoders.encode(prediction, accept), accept, mimetype=accept)
"""


def write_script_preprocessor(samples: Path, folder: Path) -> None:
    """What the sample preprocessor does, with its columns by name: the same numbers by another way."""
    import joblib
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    sample = joblib.load(samples / "house_preprocessor" / "model.joblib")
    names = ["year", "feet", "bedrooms", "bathrooms", "lot", "garage", "deck", "porch"]
    two = pd.DataFrame([[1.0] * 6 + ["y", "n"], [2.0] * 6 + ["n", "y"]], columns=names)
    by_name = ColumnTransformer(
        [
            ("numbers", StandardScaler(), names[:6]),
            ("yes_or_no", OneHotEncoder(drop="if_binary", categories=[["n", "y"]] * 2), names[6:]),
        ],
    ).fit(two)
    learned, right = by_name.named_transformers_["numbers"], sample.named_transformers_["numbers"]
    learned.mean_, learned.scale_, learned.var_ = right.mean_, right.scale_, right.var_
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "inference.py").write_text(PREPROCESSES)
    joblib.dump(by_name, folder / "model.joblib")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Iterator[EndpointServer]:
    models = tmp_path_factory.mktemp("pipelines") / "models"
    (models / "linear").mkdir(parents=True)
    shutil.copy(samples_folder / "house_linear_learner.tar.gz", models / "linear" / "city.tar.gz")
    for name in ("house_preprocessor", "houston", "boston"):
        shutil.copy(samples_folder / f"{name}.tar.gz", models)
    source = models.parent / "source"
    for name in ("a", "b"):
        folder = source / name
        folder.mkdir(parents=True)
        (folder / "name.txt").write_text(name)
        packed(folder, models / "plain" / f"{name}.tar.gz")
    write_script_preprocessor(samples_folder, source / "preprocessor")
    packed(source / "preprocessor", models / "script_preprocessor.tar.gz")
    code = source / "code"
    code.mkdir()
    (code / "serve_it.py").write_text(SAYS)
    packed(code, models / "sourcedir.tar.gz")
    server = EndpointServer("native", models)
    server.models = models
    yield server
    assert server.stop() == 0, server.process.log


def container(server: EndpointServer, path: str, **more: Any) -> dict[str, Any]:
    return {"Image": "any/image:1", "ModelDataUrl": f"file://{server.models}/{path}", **more}


def configured(server: EndpointServer, name: str, *containers: dict[str, Any]) -> str:
    sagemaker = server.sagemaker
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, Containers=list(containers))
    variant = {
        "ModelName": name, "VariantName": "AllTraffic", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large",
    }  # fmt: skip
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    return name


def deployed(server: EndpointServer, name: str, *containers: dict[str, Any]) -> str:
    sagemaker = server.sagemaker
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=configured(server, name, *containers))
    wait_for(server, name)
    return name


def wait_for(server: EndpointServer, name: str) -> None:
    """In service at the first look, unless the machine is very slow."""
    server.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig={"Delay": 1})


def test_a_preprocessor_before_a_multi_model_learner(server: EndpointServer) -> None:
    """
    Raw rows with y and n go in, a score comes out; TargetModel is the learner's alone.
    """
    deployed(
        server,
        "houses",
        container(server, "house_preprocessor.tar.gz", ContainerHostname="preprocessor"),
        container(server, "linear/", Mode="MultiModel", ContainerHostname="learner"),
    )
    answer = server.predict("city.tar.gz", RAW, EndpointName="houses", Accept="application/json")
    assert list(json.loads(answer)) == ["predictions"]
    assert isinstance(json.loads(answer)["predictions"][0]["score"], float)
    with pytest.raises(ClientError) as caught:
        server.predict("city.tar.gz", "x,y", EndpointName="houses")
    assert " from preprocessor with message " in caught.value.response["Error"]["Message"]
    with pytest.raises(ClientError) as caught:
        server.predict("other.tar.gz", RAW, EndpointName="houses")
    assert caught.value.response["Error"]["Code"] == "ValidationError"


def test_the_published_preprocessor_before_a_learner(server: EndpointServer) -> None:
    """
    Its JSON is what the next container gets, and the learner's score is that of the sample preprocessor.
    """
    learner = container(server, "linear/city.tar.gz")
    deployed(server, "by-script", container(server, "script_preprocessor.tar.gz"), learner)
    deployed(server, "by-sample", container(server, "house_preprocessor.tar.gz"), learner)
    by_script, by_sample = (
        json.loads(server.predict(None, RAW, EndpointName=name, Accept="application/json"))["predictions"][0]["score"]
        for name in ("by-script", "by-sample")
    )
    assert by_script == pytest.approx(by_sample, rel=1e-6)

    says = {
        "SAGEMAKER_PROGRAM": "serve_it.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": f"file://{server.models}/sourcedir.tar.gz",
    }
    for name, more in (("said", {}), ("said-csv", {"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"})):
        first = container(server, "script_preprocessor.tar.gz", Environment=more)
        deployed(server, name, first, container(server, "plain/a.tar.gz", Environment=says))
    handed = json.loads(server.predict(None, RAW, EndpointName="said"))["data"]
    (features,) = (row["features"] for row in json.loads(handed)["instances"])
    assert len(features) == 8
    as_csv = json.loads(server.predict(None, RAW, EndpointName="said-csv"))["data"]
    assert [float(field) for field in as_csv.strip().split(",")] == features


def test_a_single_model_endpoint_takes_no_target(server: EndpointServer) -> None:
    """
    And answers as AWS's single-model containers do: XGBoost's default is CSV.
    """
    deployed(server, "one-model", container(server, "houston.tar.gz"))
    answer = server.client("sagemaker-runtime").invoke_endpoint(
        EndpointName="one-model", ContentType="text/csv", Body=HOUSE
    )
    assert answer["ContentType"].startswith("text/csv")
    assert float(answer["Body"].read())
    with pytest.raises(ClientError, match="is not a multi-model endpoint and does not support target model header"):
        server.predict("houston.tar.gz", HOUSE, EndpointName="one-model")


def test_a_containers_variables_and_code_reach_its_models(server: EndpointServer) -> None:
    """
    Each container's own; the code serves every model of it.
    """
    for name in ("first", "second"):
        environment = {
            "SAYS": name,
            "SAGEMAKER_PROGRAM": "serve_it.py",
            "SAGEMAKER_SUBMIT_DIRECTORY": f"file://{server.models}/sourcedir.tar.gz",
        }
        deployed(server, name, container(server, "plain/", Mode="MultiModel", Environment=environment))
    for name in ("first", "second", "first"):
        for target in ("a", "b"):
            answer = json.loads(server.predict(f"{target}.tar.gz", "x", "text/plain", EndpointName=name))
            assert answer == {"model": target, "variable": name, "data": "x"}


DEAD = "import json\n\ndef model_fn(model_dir):\n    raise KeyError('weights')\n"
MISSING = "cannot be started: Failed to download model data(folder: "


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["nowhere.tar.gz"], f"The primary container for production variant AllTraffic {MISSING}"),
        (
            ["dead.tar.gz"],
            "The primary container for production variant AllTraffic did not pass the ping health check: Unable to",
        ),
        (
            ["houston.tar.gz", "nowhere.tar.gz"],
            f"The container container-2 for production variant AllTraffic {MISSING}",
        ),
    ],
)
def test_an_endpoint_whose_container_does_not_start_has_failed(
    server: EndpointServer, tmp_path: Path, paths: list[str], reason: str
) -> None:
    """
    DescribeEndpoint says why, boto3's waiter ends at once, and nobody is served by it.
    """
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(DEAD)
    packed(tmp_path, server.models / "dead.tar.gz")
    name = f"failed-{len(paths)}-{paths[0].partition('.')[0]}"
    sagemaker = server.sagemaker
    config = configured(server, name, *(container(server, path) for path in paths))
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
    with pytest.raises(WaiterError):
        wait_for(server, name)

    described = sagemaker.describe_endpoint(EndpointName=name)
    assert described["EndpointStatus"] == "Failed"
    assert described["FailureReason"].startswith(reason)
    assert "Traceback" not in described["FailureReason"]
    with pytest.raises(ClientError, match=f"Endpoint {name} of account 000000000000 not found"):
        server.predict(None, HOUSE, EndpointName=name)
    sagemaker.delete_endpoint(EndpointName=name)


@pytest.mark.parametrize(
    ("program", "archive", "reason"),
    [
        ("other.py", "sourcedir.tar.gz", "The container's script other.py is not at the top of SAGEMAKER_SUBMIT_DIR"),
        ("serve_it.py", "nowhere.tar.gz", "Failed to download model data(folder: "),
    ],
)
def test_a_multi_model_endpoint_without_its_script_has_failed(
    server: EndpointServer, program: str, archive: str, reason: str
) -> None:
    """Before any model is asked for."""
    environment = {
        "SAGEMAKER_PROGRAM": program,
        "SAGEMAKER_SUBMIT_DIRECTORY": f"file://{server.models}/{archive}",
    }
    name = f"no-script-{archive.partition('.')[0]}"
    sagemaker = server.sagemaker
    of = container(server, "plain/", Mode="MultiModel", Environment=environment)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=configured(server, name, of))
    with pytest.raises(WaiterError):
        wait_for(server, name)

    described = sagemaker.describe_endpoint(EndpointName=name)
    assert described["EndpointStatus"] == "Failed"
    assert f"cannot be started: {reason}" in described["FailureReason"]


def test_an_update_that_does_not_start_leaves_the_endpoint_as_it_was(server: EndpointServer) -> None:
    """
    In service, with the reason; a weight can be changed, and the next update is an update.
    """
    sagemaker = server.sagemaker
    deployed(server, "steady", container(server, "houston.tar.gz"))
    houston = server.predict(None, HOUSE, EndpointName="steady")
    for path, status in (("nowhere.tar.gz", ("steady", houston)), ("boston.tar.gz", ("steady-boston", None))):
        config = configured(server, f"steady-{path.partition('.')[0]}", container(server, path))
        sagemaker.update_endpoint(EndpointName="steady", EndpointConfigName=config)
        wait_for(server, "steady")
        described = sagemaker.describe_endpoint(EndpointName="steady")
        assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", status[0])
        assert (MISSING in described.get("FailureReason", "")) == (status[1] is not None)
        answer = server.predict(None, HOUSE, EndpointName="steady")
        assert (answer == houston) == (status[1] is not None)
        weight = [{"VariantName": "AllTraffic", "DesiredWeight": 2.0}]
        sagemaker.update_endpoint_weights_and_capacities(EndpointName="steady", DesiredWeightsAndCapacities=weight)
        assert server.predict(None, HOUSE, EndpointName="steady") == answer


def test_a_new_endpoint_has_the_code_that_is_there_now(server: EndpointServer, tmp_path: Path) -> None:
    """
    Overwritten a moment ago: one from before goes on with what it has, until it is updated or made again.
    """
    sagemaker = server.sagemaker
    environment = {
        "SAGEMAKER_PROGRAM": "serve_it.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": f"file://{server.models}/changing.tar.gz",
    }
    of = container(server, "plain/", Mode="MultiModel", Environment=environment)

    def overwrite(version: str) -> None:
        (tmp_path / "serve_it.py").write_text(SAYS.replace('os.environ.get("SAYS", "")', repr(version)))
        packed(tmp_path, server.models / "changing.tar.gz")

    def version(endpoint: str) -> str:
        return str(json.loads(server.predict("a.tar.gz", "x", "text/plain", EndpointName=endpoint))["variable"])

    overwrite("1")
    deployed(server, "code-old", of)
    assert version("code-old") == "1"
    overwrite("2")
    deployed(server, "code-new", of)
    assert (version("code-new"), version("code-old")) == ("2", "1")
    sagemaker.update_endpoint(EndpointName="code-old", EndpointConfigName="code-new")
    wait_for(server, "code-old")
    assert version("code-old") == "2"
    overwrite("3")
    sagemaker.delete_endpoint(EndpointName="code-new")
    sagemaker.create_endpoint(EndpointName="code-new", EndpointConfigName="code-new")
    wait_for(server, "code-new")
    assert (version("code-new"), version("code-old")) == ("3", "2")


def test_endpoints_of_equal_containers_report_each_for_itself(server: EndpointServer) -> None:
    """
    Loaded models, hits and loads; a deleted one takes only its own away.
    """

    def reported(endpoint: str) -> tuple[float, float, float, float]:
        page = server.request("GET", "/metrics").text
        values = {
            (sample.name, sample.labels.get("variant")): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.labels.get("endpoint") == endpoint
        }
        names = (
            "loaded_model_count",
            "model_loading_time_seconds_count",
            "model_cache_hits_total",
            "invocations_total",
        )
        return tuple(values.get((f"polyhost_{name}", "AllTraffic"), 0.0) for name in names)

    sagemaker = server.sagemaker
    for name in ("twin-a", "twin-b"):
        deployed(server, name, container(server, "", Mode="MultiModel"))
    for name, calls in (("twin-a", 3), ("twin-b", 2)):
        for _ in range(calls):
            server.predict("houston.tar.gz", HOUSE, EndpointName=name)
    assert (reported("twin-a"), reported("twin-b")) == ((1, 1, 2, 3), (1, 1, 1, 2))
    sagemaker.delete_endpoint(EndpointName="twin-a")
    assert reported("twin-a") == (0, 0, 0, 0)
    server.predict("houston.tar.gz", HOUSE, EndpointName="twin-b")
    assert reported("twin-b") == (1, 1, 2, 3)


def test_traffic_splits_by_weight(server: EndpointServer) -> None:
    """
    A named variant gets its own; an update swaps without a gap, a deleted endpoint is gone with its models.
    """
    sagemaker = server.sagemaker
    variants = []
    for name, weight in (("houston", 3.0), ("boston", 1.0)):
        model = {**container(server, f"{name}.tar.gz")}
        sagemaker.create_model(ModelName=f"split-{name}", ExecutionRoleArn=ROLE, PrimaryContainer=model)
        variants.append({
            "ModelName": f"split-{name}", "VariantName": name, "InitialVariantWeight": weight,
            "InitialInstanceCount": 1, "InstanceType": "ml.m5.large",
        })  # fmt: skip
    sagemaker.create_endpoint_config(EndpointConfigName="split", ProductionVariants=variants)
    sagemaker.create_endpoint(EndpointName="split", EndpointConfigName="split")
    wait_for(server, "split")
    runtime = server.client("sagemaker-runtime")

    def count(requests: int, **more: str) -> Counter[str]:
        return Counter(
            runtime.invoke_endpoint(EndpointName="split", ContentType="text/csv", Body=HOUSE, **more)[
                "InvokedProductionVariant"
            ]
            for _ in range(requests)
        )

    split = count(400)
    assert 240 < split["houston"] < 360  # 300 and seven standard deviations
    assert count(5, TargetVariant="boston") == {"boston": 5}
    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName="split", DesiredWeightsAndCapacities=[{"VariantName": "houston", "DesiredWeight": 0.0}]
    )
    assert count(50) == {"boston": 50}
    sagemaker.delete_endpoint(EndpointName="split")
    with pytest.raises(ClientError, match="Endpoint split of account 000000000000 not found"):
        count(1)


def test_endpoints_survive_a_kill(server: EndpointServer, tmp_path: Path) -> None:
    """
    What was acknowledged is there after kill -9 and a new start, and answers.
    """
    first = EndpointServer("native", server.models, state=tmp_path / "state")
    first.models = server.models
    deployed(first, "kept", container(first, "houston.tar.gz"))
    before = first.predict(None, HOUSE, EndpointName="kept")
    first.kill()
    second = EndpointServer("native", server.models, state=tmp_path / "state")
    try:
        assert second.predict(None, HOUSE, EndpointName="kept") == before
    finally:
        assert second.stop() == 0, second.process.log


def test_mms_has_one_container_definition(server: EndpointServer) -> None:
    """
    What differs from the server's own is refused with a sentence.
    """
    mms = EndpointServer("mms", server.models)
    mms.models = server.models
    try:
        with pytest.raises(ClientError, match="With --engine mms a server has one container definition"):
            deployed(mms, "other", container(mms, "plain/", Mode="MultiModel", Environment={"A": "B"}))
        deployed(mms, "same", container(mms, "", Mode="MultiModel"))
        assert json.loads(mms.predict("houston.tar.gz", HOUSE, EndpointName="same"))
    finally:
        assert mms.stop() == 0, mms.process.log


def test_an_environment_names_a_handler(server: EndpointServer) -> None:
    """
    As it does where our image runs on AWS; one that does not fit the archive says so.
    """
    of = {"xgboost": "by-name", "sklearn": "by-wrong-name"}
    for handler, name in of.items():
        deployed(server, name, container(server, "", Mode="MultiModel", Environment={"POLYHOST_HANDLER": handler}))
    assert json.loads(server.predict("houston.tar.gz", HOUSE, EndpointName="by-name"))
    with pytest.raises(ClientError) as caught:
        server.predict("houston.tar.gz", HOUSE, EndpointName="by-wrong-name")
    assert caught.value.response["OriginalStatusCode"] == 500


def test_without_the_model_cache_nothing_stays(server: EndpointServer) -> None:
    """
    ModelCacheSetting Disabled: each call loads, and unloads when it is answered.
    """
    before = server.names()
    one = container(server, "plain/", Mode="MultiModel", MultiModelConfig={"ModelCacheSetting": "Disabled"},
                    Environment={"POLYHOST_HANDLER": "auto", "SAGEMAKER_PROGRAM": "serve_it.py",
                                 "SAGEMAKER_SUBMIT_DIRECTORY": f"file://{server.models}/sourcedir.tar.gz"})  # fmt: skip
    deployed(server, "uncached", one)
    for _ in range(2):
        assert json.loads(server.predict("a.tar.gz", "x", "text/plain", EndpointName="uncached"))["model"] == "a"
        wait_until(lambda: server.names() == before, 60, "it is unloaded")
