"""`sagemaker_containers.beta.framework.transformer`: the functions that scripts leave out, or call from their own."""

from __future__ import annotations

from typing import Any

from polyhost_handlers.aws import encoders
from polyhost_handlers.aws.worker import Response


def default_model_fn(model_dir: str) -> Any:
    raise NotImplementedError("Please provide a model_fn implementation.")


def default_input_fn(input_data: Any, content_type: str) -> Any:
    return encoders.decode(input_data, content_type)


def default_predict_fn(data: Any, model: Any) -> Any:
    raise NotImplementedError("Please provide a predict_fn implementation.")


def default_output_fn(prediction: Any, accept: str) -> Response:
    return Response(response=encoders.encode(prediction, accept), mimetype=accept)
