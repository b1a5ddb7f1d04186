"""What a container definition means: where its models are, who handles them, which variables they see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.hosting.containers import Unusable, containers_of
from polyhost.endpoint.hosting.images import handler_of, refusal_of, unknown_handler

ECR = "683313688378.dkr.ecr.us-east-1.amazonaws.com"


def containers(*definitions: dict[str, Any], allowed: Path = Path("/srv/models")) -> tuple[Container, ...]:
    fields = {"PrimaryContainer": definitions[0]} if len(definitions) == 1 else {"Containers": list(definitions)}
    return containers_of({"ModelName": "m", **fields}, [allowed])


def definition(url: str = "s3://bucket/models/", mode: str = "MultiModel", **fields: Any) -> dict[str, Any]:
    return {"Image": "polyhost:latest", "ModelDataUrl": url, "Mode": mode, **fields}


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("s3://bucket/models/", "s3://bucket/models/"),
        ("s3://bucket/models", "s3://bucket/models/"),
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/a?b#c", "s3://bucket/a?b#c/"),
        ("https://s3-us-west-2.amazonaws.com/bucket/models/", "s3://bucket/models/"),
        ("https://s3.us-west-2.amazonaws.com/bucket/models/", "s3://bucket/models/"),
        ("https://s3.dualstack.us-west-2.amazonaws.com/bucket/models/", "s3://bucket/models/"),
        ("https://s3.amazonaws.com/bucket/two%20words", "s3://bucket/two words/"),
        ("https://s3.cn-north-1.amazonaws.com.cn/bucket/models/", "s3://bucket/models/"),
        ("https://bucket.s3.us-west-2.amazonaws.com/models/", "s3://bucket/models/"),
        ("https://bucket.s3-us-west-2.amazonaws.com/models", "s3://bucket/models/"),
        ("https://with.dots.s3.amazonaws.com/models", "s3://with.dots/models/"),
        ("file:///srv/models/a/", "/srv/models/a/"),
        ("file:///srv/models/two%20words", "/srv/models/two words/"),
        ("/srv/models/a/../b", "/srv/models/b/"),
        ("/srv/models", "/srv/models/"),
    ],
)
def test_where_the_models_are(url: str, source: str) -> None:
    """Every way to write a bucket, and the folders of this machine; a folder's name ends with a slash."""
    assert [container.source for container in containers(definition(url))] == [source]
    if not url.endswith("/") and url != "s3://bucket":
        (single,) = containers(definition(url, "SingleModel"))
        assert (single.source, single.is_multi_model) == (source.removesuffix("/"), False)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (definition("https://example.com/bucket/models/"), "no plain url of S3"),
        (definition("https://s3.amazonaws.com.example.com/bucket/models/"), "no plain url of S3"),
        (definition("https://bucket.s3.amazonaws.com/m.tar.gz?X-Amz-Signature=5"), "no plain url of S3"),
        (definition("https://s3.us-west-2.amazonaws.com/"), "names no bucket"),
        (definition("s3:///models"), "names no bucket"),
        (definition("file://host/models"), "none of s3://BUCKET/PREFIX"),
        (definition("models/"), "none of s3://BUCKET/PREFIX"),
        (definition("/srv/models-of-others/"), "'/srv/models-of-others/' does not lie under"),
        (definition("/srv/models/../others/"), "does not lie under"),
        (definition("file:///srv/models/%2e%2e/others/"), "does not lie under"),
        (definition("s3://bucket/models/", "SingleModel"), "in Mode SingleModel name one archive"),
        (definition("s3://bucket/m", Environment={"A": "a\0b"}), "Environment.A has a character"),
        (
            definition("s3://bucket/m", Environment={"POLYHOST_HANDLER": "xgbost"}),
            "Environment.POLYHOST_HANDLER 'xgbost' is no handler: write auto, script, knn,",
        ),
        (definition("s3://bucket/m", InferenceSpecificationName="a"), "InferenceSpecificationName is not supported"),
        (definition("s3://bucket/m", ModelDataSource={"S3DataSource": {}}), "ModelDataUrl must say where"),
    ],
)
def test_definitions_that_cannot_be_served(given: dict[str, Any], sentence: str) -> None:
    """One sentence that names the field; a signature is not repeated."""
    with pytest.raises(Unusable, match=f"^PrimaryContainer.*{sentence}") as caught:
        containers(given)
    assert "Signature" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "data", "outcome"),
    [
        ("SingleModel", {"S3DataType": "S3Object"}, "s3://b/k"),
        ("MultiModel", {"S3DataType": "S3Prefix"}, "s3://b/k/"),
        ("MultiModel", {"S3DataType": "S3Object"}, "must have CompressionType Gzip and S3DataType S3Prefix"),
        ("SingleModel", {"S3DataType": "S3Prefix"}, "must have CompressionType Gzip and S3DataType S3Object"),
        ("SingleModel", {"S3DataType": "S3Object", "CompressionType": "None"}, "must have CompressionType Gzip"),
        ("SingleModel", {"S3DataType": "S3Object", "ETag": "5"}, "S3DataSource.ETag is not supported"),
        (
            "SingleModel",
            {"S3DataType": "S3Object", "HubAccessConfig": {"HubContentArn": "a"}},
            "HubAccessConfig is not",
        ),
    ],
)
def test_sources_of_the_newer_form(mode: str, data: dict[str, Any], outcome: str) -> None:
    """ModelDataSource, where it says the same as ModelDataUrl can."""
    source = {"S3DataSource": {"S3Uri": "s3://b/k", "CompressionType": "Gzip", **data}}
    given = {"Image": "i", "Mode": mode, "ModelDataSource": source}

    if outcome.startswith("s3:"):
        assert containers(given)[0].source == outcome
    else:
        with pytest.raises(Unusable, match=outcome):
            containers(given)


def test_a_container_in_full() -> None:
    """Variables sorted, so that equal definitions are equal; the setting of its cache; its name."""
    given = definition(
        Image=f"{ECR}/sagemaker-xgboost:1.7-1",
        Environment={"B": "2", "A": "1"},
        ContainerHostname="first",
        MultiModelConfig={"ModelCacheSetting": "Disabled"},
    )

    assert containers(given) == (
        Container(
            source="s3://bucket/models/",
            handler="xgboost",
            environ=(("A", "1"), ("B", "2")),
            image="sagemaker-xgboost:1.7-1",
            hostname="first",
            is_cached=False,
        ),
    )


def test_a_pipeline_has_names() -> None:
    """Each container's own, or its place; a single one needs none."""
    single = definition("s3://bucket/m.tar.gz", "SingleModel")

    assert [c.hostname for c in containers(single, definition(ContainerHostname="mine"))] == ["container-1", "mine"]
    assert [c.hostname for c in containers(single)] == [""]
    assert [c.hostname for c in containers_of({"Containers": [single]}, [])] == [""]
    with pytest.raises(Unusable, match="ContainerHostname is not unique"):
        containers({**single, "ContainerHostname": "a"}, definition(ContainerHostname="a"))


@pytest.mark.parametrize(
    ("image", "environ", "handler"),
    [
        (f"{ECR}/sagemaker-xgboost:1.7-1", {}, "xgboost"),
        ("811284229777.dkr.ecr.us-east-1.amazonaws.com/xgboost:1", {}, "xgboost"),
        ("382416733822.dkr.ecr.us-east-1.amazonaws.com/linear-learner:latest", {}, "linear-learner"),
        (f"{ECR}/linear-learner@sha256:0123", {}, "linear-learner"),
        ("xgboost", {}, "xgboost"),
        ("host:5000/team/xgboost", {}, "xgboost"),
        # The SDK sends the variables empty where there is no script.
        (f"{ECR}/sagemaker-xgboost:1.7-1", {"SAGEMAKER_PROGRAM": "", "SAGEMAKER_SUBMIT_DIRECTORY": ""}, "xgboost"),
        (f"{ECR}/sagemaker-xgboost:1.7-1", {"SAGEMAKER_PROGRAM": "inference.py"}, ""),
        (f"{ECR}/sagemaker-xgboost:1.7-1", {"SAGEMAKER_SUBMIT_DIRECTORY": "s3://b/sourcedir.tar.gz"}, ""),
        (f"{ECR}/sagemaker-scikit-learn:1.2-1-cpu-py3", {}, ""),
        (f"{ECR}/mxnet-inference:1.9.0-cpu-py38", {}, ""),
        ("123456789012.dkr.ecr.us-east-1.amazonaws.com/my-xgboost:1", {}, ""),
        ("polyhost:latest", {}, ""),
        ("xgboost:", {}, "xgboost"),
        (":/@", {}, ""),
    ],
)
def test_images_that_stand_for_a_handler(image: str, environ: dict[str, str], handler: str) -> None:
    """The built-in algorithms without a script of the user's; everything else is what its archives hold."""
    assert handler_of(image, environ) == handler


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "") for name in ("auto", "xgboost", "linear-learner", "script", "polyhost_handlers.onnx_handler")),
        *((name, "") for name in ("shout:handle", "package.module", "package.module:handle", f"{__file__}:handle")),
        ("pmml", "is no handler: write auto, script, "),
        ("XGBoost", "is no handler"),
        ("handle()", "is no handler"),
        ("a b", "is no handler"),
        ("/opt/handlers/none.py:handle", "names the file /opt/handlers/none.py, which is not there"),
    ],
)
def test_handlers_by_name(name: str, words: str) -> None:
    """A name that no archive can have is refused before the endpoint is in service."""
    assert (words in unknown_handler(name)) if words else (unknown_handler(name) == "")


DLC = "763104351884.dkr.ecr.us-east-1.amazonaws.com"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("811284229777.dkr.ecr.us-east-1.amazonaws.com/blazingtext:1", "blazingtext"),
        ("522234722520.dkr.ecr.us-east-1.amazonaws.com/forecasting-deepar:1", "forecasting-deepar"),
        ("382416733822.dkr.ecr.us-east-1.amazonaws.com/randomcutforest@sha256:0123", "randomcutforest"),
        ("object-detection", "object-detection"),
        (
            f"{DLC}/huggingface-pytorch-inference:2.1.0-transformers4.37.0-cpu-py310-ubuntu22.04",
            "huggingface-pytorch-inf",
        ),
        (f"{DLC}/huggingface-pytorch-tgi-inference:2.1.1-tgi1.4.0-gpu", "huggingface-pytorch-tgi-inference"),
        (f"{DLC}/huggingface-pytorch-inference-neuronx:1.13", "huggingface-pytorch-inference-neuronx"),
        (f"{DLC}/huggingface-tensorflow-inference:2.11.1", "huggingface-tensorflow-inference"),
        (f"{DLC}/djl-inference:0.27.0-deepspeed0.12.6", "djl-inference"),
        ("007439368137.dkr.ecr.us-east-2.amazonaws.com/sagemaker-tritonserver:24.03-py3", "sagemaker-tritonserver"),
        ("246618743249.dkr.ecr.us-west-2.amazonaws.com/sagemaker-sparkml-serving:3.3", "sagemaker-sparkml-serving"),
        ("301217895009.dkr.ecr.us-west-2.amazonaws.com/xgboost-neo:latest", "xgboost-neo"),
        ("156813124566.dkr.ecr.us-east-1.amazonaws.com/sagemaker-model-monitor-analyzer", "sagemaker-model-monitor"),
    ],
)
def test_images_whose_models_are_not_served(image: str, name: str) -> None:
    """By AWS's names for them, with a script or without, unless the environment names a handler."""
    for environ in ({}, {"SAGEMAKER_PROGRAM": "inference.py"}):
        assert refusal_of(image, environ).startswith(f"SageMaker's {name}")
    for handler in ("script", "auto"):
        assert refusal_of(image, {"POLYHOST_HANDLER": handler}) == ""


@pytest.mark.parametrize(
    "image",
    [
        # Served.
        f"{ECR}/sagemaker-xgboost:1.7-1", f"{ECR}/linear-learner:1", f"{ECR}/knn:1",
        f"{ECR}/sagemaker-scikit-learn:1.2-1",
        f"{DLC}/mxnet-inference:1.9.0-cpu-py38", f"{DLC}/pytorch-inference:2.1-cpu", f"{ECR}/sagemaker-base-python-310",
        f"{DLC}/tensorflow-inference:2.12.1-cpu", f"{DLC}/tensorflow-inference-graviton:2.12.1-cpu",
        "520713654638.dkr.ecr.us-east-1.amazonaws.com/sagemaker-tensorflow-serving:1.12-cpu",
        # Customers' own.
        "polyhost:latest", "123456789012.dkr.ecr.us-east-1.amazonaws.com/my-blazingtext:1", "team/blazingtext-serving",
        "huggingface-sentiment:3", "my-tensorflow-inference", "tensorflow-model-a:1", "ghcr.io/team/pca-and-more",
        "any/image:1", ":/@",
    ],
)  # fmt: skip
def test_images_that_are_taken(image: str) -> None:
    """Of kinds that are served, and all that AWS has not named."""
    assert refusal_of(image, {}) == ""
