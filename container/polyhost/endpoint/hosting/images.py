"""
What the name of a container's image says about its models. Polyhost runs no images: its handlers do what AWS's do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from polyhost_handlers.artifacts import KINDS, kind_named

from polyhost.config import parse_handler

# The built-in algorithms, by the names of their repositories. Images of frameworks (scikit-learn, MXNet, PyTorch,
# TensorFlow …) run their users' scripts and programs: what lies in each archive says more than they do.
_ALGORITHMS = {
    "xgboost": "xgboost",
    "sagemaker-xgboost": "xgboost",
    "linear-learner": "linear-learner",
}
# What is not served, and what to do instead. These names are AWS's own, as its list of images has them: an image that
# a customer has named otherwise is served by what its archives hold.
_TO_ONNX = "export the model to ONNX"
_BY_SCRIPT = (
    f"{_TO_ONNX}, or install its libraries here, bring a script with model_fn and predict_fn in code/inference.py and "
    "set POLYHOST_HANDLER to script in Environment"
)
_NO_ANSWER = "only its own container computes what it answers: leave it on SageMaker"
_NO_MODEL = "it serves no models"
_NOT_SERVED = {
    **dict.fromkeys(
        (
            "blazingtext", "factorization-machines", "forecasting-deepar", "ipinsights", "kmeans", "lda", "ntm",
            "object2vec", "pca", "randomcutforest", "seq2seq", "sagemaker-sparkml-serving",
        ),
        _NO_ANSWER,
    ),
    **dict.fromkeys(("image-classification", "object-detection", "semantic-segmentation"), _TO_ONNX),
    **dict.fromkeys(
        (
            "autogluon-inference", "djl-inference", "sagemaker-tritonserver", "stabilityai-pytorch-inference", "tei",
            "tei-cpu",
        ),
        _BY_SCRIPT,
    ),
    **dict.fromkeys(
        (
            "image-classification-neo", "sagemaker-inference-mxnet", "sagemaker-inference-pytorch",
            "sagemaker-inference-tensorflow", "sagemaker-neo-mxnet", "sagemaker-neo-pytorch",
            "sagemaker-neo-tensorflow", "xgboost-neo",
        ),
        "use the model as it was before it was compiled",
    ),
    **dict.fromkeys(
        (
            "detailed-profiler-processing", "sagemaker-clarify-processing", "sagemaker-data-wrangler-container",
            "sagemaker-debugger-rules", "sagemaker-geospatial-v1-0", "sagemaker-model-monitor-analyzer",
            "sagemaker-spark-processing",
        ),
        _NO_MODEL,
    ),
}  # fmt: skip
# New ones of these families come every few months.
_FAMILIES_NOT_SERVED = re.compile(
    r"huggingface-(?:pytorch|tensorflow|vllm|sglang|llm)-(?:[a-z-]+-)?(?:inference|training)(?:-[a-z]+)?"
)
_SCRIPT_VARIABLES = ("SAGEMAKER_PROGRAM", "SAGEMAKER_SUBMIT_DIRECTORY")
# REGISTRY/NAMESPACE/REPOSITORY:TAG@DIGEST; a registry may have a port.
_REPOSITORY = re.compile(r"(?:.*/)?(?P<repository>[^/:@]+)(?::(?P<tag>[^/:@]*))?(?:@.*)?")


def handler_of(image: str, environ: Mapping[str, str]) -> str:
    """
    The handler that an image stands for, "" where each archive tells.

    POLYHOST_HANDLER in the container's Environment names one, as it does in our image on AWS. With a script of the
    user's own the image is that of a framework, whatever its name.
    """
    if told := environ.get("POLYHOST_HANDLER", ""):
        return "" if told == "auto" else told
    if any(environ.get(variable) for variable in _SCRIPT_VARIABLES):
        return ""
    return _ALGORITHMS.get(_repository_of(image), "")


def unknown_handler(name: str) -> str:
    """
    Why no model could be served by the POLYHOST_HANDLER of a container's Environment; "" where one may be.

    A module of that name may lie in each archive, so `module:function` and `package.module` are taken.
    """
    known = f"write auto, {', '.join(kind.name for kind in KINDS)}, module:function or /dir/file.py:function"
    try:
        parse_handler(name)
    except ValueError:
        return f"is no handler: {known}"
    path = name.partition(":")[0]
    if path.startswith("/") and not Path(path).is_file():
        return f"names the file {path}, which is not there: {known}"
    is_known = name == "auto" or kind_named(name) is not None or any(mark in name for mark in ":./")
    return "" if is_known else f"is no handler: {known}"


def refusal_of(image: str, environ: Mapping[str, str]) -> str:
    """
    Why models of an image are not served, and what to do instead; "" if they are, or if each archive tells.

    POLYHOST_HANDLER says that the operator knows better.
    """
    repository = _repository_of(image)
    cure = _NOT_SERVED.get(repository, _BY_SCRIPT if _FAMILIES_NOT_SERVED.fullmatch(repository) else "")
    if not cure or environ.get("POLYHOST_HANDLER"):
        return ""
    return f"SageMaker's {repository}, which Polyhost does not serve: {cure}"


def _repository_of(image: str) -> str:
    match = _REPOSITORY.fullmatch(image)
    return match["repository"] if match else ""


def tagged(image: str) -> str:
    """`REPOSITORY:TAG` of an image, without its registry and digest; "" for what names none."""
    match = _REPOSITORY.fullmatch(image)
    return f"{match['repository']}:{match['tag'] or 'latest'}" if match else ""
