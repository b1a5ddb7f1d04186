"""
What tests/endpoint/test_sdk.py asks, done with the SageMaker Python SDK in an environment of its own.

`python sdk_cases.py ENDPOINT_URL BUCKET_URL SAMPLES CASE …` prints one JSON object: what each case saw. The cases are
written as notebooks are: only the session says where the endpoint is; and none waits as the SDK does, which
sleeps for 30 s before it looks whether an endpoint is in service.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
# The SDK's own: v2 announces v3, and what it imports has deprecations of its own.
warnings.simplefilter("ignore")
import boto3  # noqa: E402
import sagemaker  # noqa: E402
from sagemaker import image_uris  # noqa: E402
from sagemaker.async_inference import AsyncInferenceConfig, AsyncInferenceResponse  # noqa: E402
from sagemaker.deserializers import JSONDeserializer  # noqa: E402
from sagemaker.exceptions import AsyncInferenceModelError, ObjectNotExistedError  # noqa: E402
from sagemaker.model import Model  # noqa: E402
from sagemaker.model_monitor import DataCaptureConfig  # noqa: E402
from sagemaker.multidatamodel import MultiDataModel  # noqa: E402
from sagemaker.pipeline import PipelineModel  # noqa: E402
from sagemaker.predictor import Predictor  # noqa: E402
from sagemaker.serializers import CSVSerializer  # noqa: E402
from sagemaker.sklearn import SKLearnModel  # noqa: E402

REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/service-role/Models"
BUCKET = "bucket"
HOUSE = [1998, 2150, 3, 2.5, 0.4, 2]
SCRIPT = """
import json, os

def model_fn(model_dir):
    return sorted(os.listdir(model_dir))

def input_fn(body, content_type):
    return body if isinstance(body, str) else body.decode()

def predict_fn(data, model):
    return {"files": model, "sum": sum(float(x) for x in data.split(","))}

def output_fn(prediction, accept):
    return json.dumps(prediction), "application/json"
"""
ENDPOINT_URL, BUCKET_URL, SAMPLES = sys.argv[1], sys.argv[2], Path(sys.argv[3])
XGBOOST = image_uris.retrieve("xgboost", REGION, "1.7-1")


def session() -> sagemaker.Session:
    """As a user of Polyhost makes it."""
    boto = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION)
    session = sagemaker.Session(
        boto_session=boto,
        sagemaker_client=boto.client("sagemaker", endpoint_url=ENDPOINT_URL),
        sagemaker_runtime_client=boto.client("sagemaker-runtime", endpoint_url=ENDPOINT_URL),
        default_bucket=BUCKET,
    )
    session.s3_client = boto.client("s3", endpoint_url=BUCKET_URL)
    session.s3_resource = boto.resource("s3", endpoint_url=BUCKET_URL)
    return session


def wait_for(sdk: sagemaker.Session, name: str) -> None:
    """In service at the first look, unless the machine is very slow."""
    waiter = sdk.sagemaker_client.get_waiter("endpoint_in_service")
    waiter.wait(EndpointName=name, WaiterConfig={"Delay": 1})


def multi_model(sdk: sagemaker.Session, name: str) -> tuple[MultiDataModel, Predictor]:
    model = MultiDataModel(
        name=name,
        model_data_prefix=f"s3://{BUCKET}/{name}/",
        image_uri=XGBOOST,
        role=ROLE,
        sagemaker_session=sdk,
        predictor_cls=Predictor,
    )
    model.add_model(str(SAMPLES / "houston.tar.gz"), "texas/houston.tar.gz")
    predictor = model.deploy(
        initial_instance_count=1,
        instance_type="ml.m5.large",
        serializer=CSVSerializer(),
        deserializer=JSONDeserializer(),
        endpoint_name=name,
        tags=[{"Key": "team", "Value": "houses"}],
        wait=False,
    )
    return model, predictor


def upload(sdk: sagemaker.Session, name: str, prefix: str) -> str:
    sdk.s3_client.upload_file(str(SAMPLES / name), BUCKET, f"{prefix}/{name}")
    return f"s3://{BUCKET}/{prefix}/{name}"


def deploy_and_delete() -> dict[str, Any]:
    """A multi-model endpoint's life without a prediction."""
    sdk = session()
    model, predictor = multi_model(sdk, "sdk-multi")
    model.add_model(str(SAMPLES / "boston.tar.gz"))
    seen = {
        "models": sorted(model.list_models()),
        "endpoint": sdk.sagemaker_client.describe_endpoint(EndpointName="sdk-multi"),
        "model": sdk.sagemaker_client.describe_model(ModelName="sdk-multi"),
        "tags": sdk.list_tags(sdk.sagemaker_client.describe_endpoint(EndpointName="sdk-multi")["EndpointArn"]),
    }
    predictor.delete_endpoint()
    model.delete_model()
    seen["left"] = [
        sdk.sagemaker_client.list_endpoints(NameContains="sdk-multi")["Endpoints"],
        sdk.sagemaker_client.list_endpoint_configs(NameContains="sdk-multi")["EndpointConfigs"],
        sdk.sagemaker_client.list_models(NameContains="sdk-multi")["Models"],
    ]
    return seen


def deploy_twice() -> dict[str, Any]:
    """The SDK goes on with a model that exists already, and says of an endpoint that it does."""
    sdk = session()
    _, predictor = multi_model(sdk, "sdk-twice")
    try:
        multi_model(sdk, "sdk-twice")
    except Exception as error:  # noqa: BLE001 - it is what is asked
        return {"error": str(error)}
    finally:
        predictor.delete_endpoint()
    return {}


def pipeline_of(sdk: sagemaker.Session, name: str) -> PipelineModel:
    prepare = Model(
        image_uri=image_uris.retrieve("sklearn", REGION, "1.2-1"),
        model_data=upload(sdk, "house_preprocessor.tar.gz", name),
        role=ROLE,
        env={"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"},
        sagemaker_session=sdk,
    )
    predict = Model(
        image_uri=image_uris.retrieve("linear-learner", REGION),
        model_data=upload(sdk, "house_linear_learner.tar.gz", name),
        role=ROLE,
        sagemaker_session=sdk,
    )
    return PipelineModel([prepare, predict], ROLE, name=name, sagemaker_session=sdk, predictor_cls=Predictor)


def deploy_pipeline() -> dict[str, Any]:
    """An inference pipeline, updated in its place."""
    sdk = session()
    pipeline = pipeline_of(sdk, "sdk-pipeline")
    pipeline.deploy(1, "ml.m5.large", endpoint_name="sdk-pipeline", wait=False)
    model = sdk.sagemaker_client.describe_model(ModelName="sdk-pipeline")
    second = pipeline_of(sdk, "sdk-pipeline-2")
    predictor = second.deploy(2, "ml.m5.xlarge", endpoint_name="sdk-pipeline", update_endpoint=True, wait=False)
    endpoint = sdk.sagemaker_client.describe_endpoint(EndpointName="sdk-pipeline")
    predictor.delete_endpoint(delete_endpoint_config=False)
    return {"model": model, "endpoint": endpoint}


def deploy_and_update() -> dict[str, Any]:
    """One model, whose requests are captured, then the predictor's own update to a second one."""
    sdk = session()
    capture = DataCaptureConfig(True, sampling_percentage=50, destination_s3_uri=f"s3://{BUCKET}/captured")
    for name in ("houston", "boston"):
        url = upload(sdk, f"{name}.tar.gz", "sdk-single")
        model = Model(XGBOOST, url, ROLE, name=f"sdk-{name}", sagemaker_session=sdk, predictor_cls=Predictor)
        if name == "houston":
            predictor = model.deploy(
                1, "ml.m5.large", endpoint_name="sdk-single", wait=False, data_capture_config=capture
            )
            captured = sdk.sagemaker_client.describe_endpoint(EndpointName="sdk-single")["DataCaptureConfig"]
        else:
            model.create(instance_type="ml.m5.large")
    predictor.update_endpoint(
        initial_instance_count=2, instance_type="ml.m5.large", model_name="sdk-boston", wait=False
    )
    sdk.wait_for_endpoint("sdk-single", poll=1)
    endpoint = sdk.sagemaker_client.describe_endpoint(EndpointName="sdk-single")
    config = sdk.sagemaker_client.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    predictor.delete_model()
    predictor.delete_endpoint()
    return {"endpoint": endpoint, "config": config, "captured": captured}


def script_models(sdk: sagemaker.Session, name: str) -> tuple[MultiDataModel, Predictor]:
    """A user's script, which the SDK packs and uploads, for all models of an endpoint."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "serve.py"
        script.write_text(SCRIPT)
        framework = SKLearnModel(
            model_data=f"s3://{BUCKET}/{name}/",
            role=ROLE,
            entry_point=str(script),
            framework_version="1.2-1",
            py_version="py3",
            code_location=f"s3://{BUCKET}/code/{name}",
            sagemaker_session=sdk,
        )
        model = MultiDataModel(name, f"s3://{BUCKET}/{name}/", model=framework, sagemaker_session=sdk)
        model.add_model(str(SAMPLES / "houston.tar.gz"))
        predictor = model.deploy(1, "ml.m5.large", endpoint_name=name, wait=False)
    predictor.serializer, predictor.deserializer = CSVSerializer(), JSONDeserializer()
    return model, predictor


def deploy_script() -> dict[str, Any]:
    sdk = session()
    _, predictor = script_models(sdk, "sdk-script")
    described = sdk.sagemaker_client.describe_model(ModelName="sdk-script")
    predictor.delete_endpoint()
    return {"model": described}


def not_here() -> dict[str, Any]:
    """What Polyhost does not do is refused with a sentence, not with a hanging notebook."""
    sdk = session()
    model = Model(XGBOOST, upload(sdk, "houston.tar.gz", "sdk-no"), ROLE, name="sdk-no", sagemaker_session=sdk)
    serverless = sagemaker.serverless.ServerlessInferenceConfig()
    seen = {}
    for what, attempt in (
        ("serverless", lambda: model.deploy(serverless_inference_config=serverless)),
        ("training", sdk.sagemaker_client.list_training_jobs),
    ):
        try:
            attempt()
        except Exception as error:  # noqa: BLE001 - it is what is asked
            seen[what] = str(error)
    return seen


def predict() -> dict[str, Any]:
    """Predictions of several models behind one endpoint, one of them added while it serves; then of a pipeline."""
    sdk = session()
    model, predictor = multi_model(sdk, "sdk-predict")
    wait_for(sdk, "sdk-predict")
    seen = {"houston": predictor.predict(HOUSE, target_model="texas/houston.tar.gz")}
    model.add_model(str(SAMPLES / "boston.tar.gz"))
    seen["boston"] = predictor.predict(HOUSE, target_model="boston.tar.gz")
    try:
        predictor.predict(HOUSE, target_model="nowhere.tar.gz")
    except sdk.sagemaker_runtime_client.exceptions.ClientError as error:
        seen["nowhere"] = error.response["Error"]["Code"]
    predictor.delete_endpoint()
    try:
        predictor.predict(HOUSE, target_model="boston.tar.gz")
    except sdk.sagemaker_runtime_client.exceptions.ClientError as error:
        seen["deleted"] = str(error)

    predictor = pipeline_of(sdk, "sdk-piped").deploy(1, "ml.m5.large", endpoint_name="sdk-piped", wait=False)
    wait_for(sdk, "sdk-piped")
    predictor.serializer, predictor.deserializer = CSVSerializer(), JSONDeserializer()
    seen["pipeline"] = predictor.predict([*HOUSE, "y", "n"])
    predictor.delete_endpoint()

    _, predictor = script_models(sdk, "sdk-scripted")
    wait_for(sdk, "sdk-scripted")
    seen["script"] = predictor.predict([1, 2, 3], target_model="houston.tar.gz")
    predictor.delete_endpoint()
    return seen


def transform() -> dict[str, Any]:
    """Rows from a bucket to a bucket, joined with their predictions; the SDK waits, and looks for a log."""
    sdk = session()
    sdk.upload_string_as_file_body(f"{','.join(map(str, HOUSE))}\n" * 2, BUCKET, "sdk-rows/rows.csv")
    model = Model(
        XGBOOST, upload(sdk, "houston.tar.gz", "sdk-rows-model"), ROLE, name="sdk-rows", sagemaker_session=sdk
    )
    transformer = model.transformer(
        1, "ml.m5.large", output_path=f"s3://{BUCKET}/sdk-rows-out", accept="text/csv", assemble_with="Line"
    )
    transformer.transform(
        f"s3://{BUCKET}/sdk-rows/",
        content_type="text/csv",
        split_type="Line",
        join_source="Input",
        wait=True,
        logs=True,
    )
    written = sdk.read_s3_file(BUCKET, "sdk-rows-out/rows.csv.out")
    transformer.delete_model()
    return {"rows": written.splitlines()}


def asynchronous() -> dict[str, Any]:
    """A house whose price is written into the session's bucket, where the SDK looks for it; and what is no house."""
    sdk = session()
    model = Model(
        XGBOOST, upload(sdk, "houston.tar.gz", "sdk-later-model"), ROLE, name="sdk-later", sagemaker_session=sdk,
        predictor_cls=Predictor,
    )  # fmt: skip
    predictor = model.deploy(
        1, "ml.m5.large", endpoint_name="sdk-later", async_inference_config=AsyncInferenceConfig(),
        serializer=CSVSerializer(), deserializer=JSONDeserializer(), wait=False,
    )  # fmt: skip
    wait_for(sdk, "sdk-later")
    responses = [predictor.predict_async(HOUSE), predictor.predict_async(["no", "house"])]
    price, failure = [_result_of(response) for response in responses]
    predictor.delete_endpoint()
    return {"price": price, "failure": failure}


def _result_of(response: AsyncInferenceResponse) -> Any:
    """Looks often: the SDK's own waiters look once a second, and go on looking in threads for what never comes."""
    while True:
        try:
            return response.get_result()
        except AsyncInferenceModelError as error:
            return str(error)
        except ObjectNotExistedError:
            time.sleep(0.1)


def predict_with_own() -> dict[str, Any]:
    """The endpoint of the command line, by its name alone."""
    sdk = session()
    (first,) = sdk.sagemaker_client.list_endpoints(SortOrder="Ascending", MaxResults=1)["Endpoints"]
    predictor = Predictor(first["EndpointName"], sdk, serializer=CSVSerializer(), deserializer=JSONDeserializer())
    return {"denver": predictor.predict(HOUSE, target_model="denver.tar.gz")}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        deploy_and_delete,
        deploy_twice,
        deploy_pipeline,
        deploy_script,
        deploy_and_update,
        not_here,
        predict,
        transform,
        asynchronous,
        predict_with_own,
    )
}


def main() -> None:
    seen: dict[str, Any] = {"import_secs": time.perf_counter() - STARTED}
    for name in sys.argv[4:]:
        seen[name] = CASES[name]()
    sys.stdout.write(f"\n{json.dumps(seen, default=str)}\n")


if __name__ == "__main__":
    main()
