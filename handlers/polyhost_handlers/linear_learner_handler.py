"""
SageMaker's linear learner, read and computed with numpy; MXNet is not needed.

The archive is `model_algo-1`, a zip with `additional-params.json`, `manifest.json`, `mx-mod-symbol.json` and
`mx-mod-0000.params`, or these files unpacked. The layout comes from public user code, not from AWS's own
documentation, so it is read tolerantly: names of the weight and bias by what they end in, the kind of
predictor from the parameters if they tell, else from the symbol's output and the number of outputs.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import LINEAR_LEARNER_ARCHIVE, files_of
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.codecs import CSV, JSON, JSONLINES, RECORDIO
from polyhost_handlers.errors import BadInput, LoadFailed, load_errors_named
from polyhost_handlers.ndarray_file import BrokenParams, read_params
from polyhost_handlers.recordio import decode_recordio, encode_recordio

_INPUTS = (CSV, JSON, JSONLINES, RECORDIO)
_OUTPUTS = (JSON, CSV, JSONLINES, RECORDIO)
# Ten million features in float32 are 40 MB; what unpacks to more than this is a zip bomb.
_MAX_MEMBER_BYTES = 1024**3
_SUFFIXES = (".json", ".params")
_SIGMOID_OPERATORS = ("LogisticRegressionOutput", "sigmoid")


class LinearLearnerHandler(Handler):
    kind = "linear-learner"

    def __init__(
        self,
        weight: np.ndarray[Any, Any],
        bias: np.ndarray[Any, Any],
        predictor: str,
        threshold: float,
        default_accept: str,
    ) -> None:
        self._weight = weight  # (outputs, features)
        self._bias = bias  # (outputs,)
        self._predictor = predictor
        self._threshold = threshold
        self._default_accept = default_accept

    @classmethod
    def load(cls, source: ModelSource) -> LinearLearnerHandler:
        files = _members(source.model_dir)
        try:
            arrays = read_params(_the_params(files))
        except BrokenParams as error:
            raise LoadFailed(f"Unable to load model: its .params file is broken: {error}.") from error
        weight = np.atleast_2d(_array_ending(arrays, "weight")).astype(np.float64)
        bias = _array_ending(arrays, "bias", or_zeros=len(weight)).astype(np.float64).reshape(-1)
        if weight.ndim != 2 or not weight.size or len(bias) != len(weight):
            raise LoadFailed(f"Unable to load model: weights of shape {weight.shape} have {len(bias)} biases.")
        params = _json_object(files, "additional-params.json") | _json_object(files, "manifest.json")
        predictor = _predictor(params, files.get("mx-mod-symbol.json", b"").decode("utf-8", "replace"), len(weight))
        return cls(weight, bias, predictor, _threshold(params), source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = codecs.choose_accept(request.accept, _OUTPUTS, self._default_accept)
        rows = self._decode(request)
        with np.errstate(over="ignore", invalid="ignore"):
            predictions = [self._prediction(output) for output in np.asarray(rows @ self._weight.T) + self._bias]
        return Response(_encode(predictions, accept), accept)

    def _decode(self, request: Request) -> Any:
        content_type = codecs.decoder_for(request.content_type, _INPUTS)
        features = self._weight.shape[1]
        if content_type == RECORDIO:
            rows = decode_recordio(request.body, features)
        else:
            rows = codecs.decode_matrix(request.body, content_type)
        if rows.shape[1] != features:
            raise BadInput(f"Each row has {rows.shape[1]} features, the model was trained on {features}.")
        if not np.isfinite(rows if isinstance(rows, np.ndarray) else rows.data).all():
            raise BadInput("A linear model cannot take missing or infinite values: fill empty and NaN fields first.")
        return rows

    def _prediction(self, output: np.ndarray[Any, Any]) -> dict[str, Any]:
        if self._predictor == "regressor":
            return {"score": float(output[0])}
        if self._predictor == "binary_classifier":
            score = float(_sigmoid(output[0]))
            return {"score": score, "predicted_label": int(score >= self._threshold)}
        scores = _softmax(output)
        return {"score": scores.tolist(), "predicted_label": int(np.argmax(scores))}


def _members(model_dir: Path) -> Mapping[str, bytes]:
    """The archive's files that matter, by name, from the zip or from the folder itself."""
    archive = model_dir / LINEAR_LEARNER_ARCHIVE
    if not archive.is_file():
        return {path.name: path.read_bytes() for path in files_of(model_dir) if path.suffix in _SUFFIXES}
    with load_errors_named(f"{archive.name} is not a readable zip", archive.stat().st_size):
        return _unzipped(archive)


def _unzipped(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as file:
        members = [info for info in file.infolist() if Path(info.filename).suffix in _SUFFIXES]
        # No member unpacks to more than its entry says.
        if sum(info.file_size for info in members) > _MAX_MEMBER_BYTES:
            raise LoadFailed(f"Unable to load model: {archive.name} unpacks to more than a linear model has.")
        return {Path(info.filename).name: file.read(info) for info in members}


def _the_params(files: Mapping[str, bytes]) -> bytes:
    names = sorted(name for name in files if name.endswith(".params"))
    if not names:
        raise LoadFailed(f"Unable to load model: no mx-mod-0000.params among {', '.join(sorted(files)) or 'nothing'}.")
    return files[names[-1]]


def _array_ending(
    arrays: Mapping[str, np.ndarray[Any, Any]],
    ending: str,
    or_zeros: int | None = None,
) -> np.ndarray[Any, Any]:
    for name, array in arrays.items():
        if name.endswith(ending):
            return array
    if or_zeros is not None:
        return np.zeros(or_zeros)
    raise LoadFailed(f"Unable to load model: no array named *{ending} among {', '.join(arrays) or 'none'}.")


def _json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        document = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise LoadFailed(f"Unable to load model: {name} is not JSON: {error}") from error
    return document if isinstance(document, dict) else {}


def _setting(params: Mapping[str, Any], *names: str) -> Any:
    """A parameter at the top or one level below, where training jobs write their hyperparameters."""
    for scope in (params, *(value for value in params.values() if isinstance(value, Mapping))):
        for name in names:
            if scope.get(name) not in (None, ""):
                return scope[name]
    return None


def _threshold(params: Mapping[str, Any]) -> float:
    value = _setting(params, "binary_classifier_threshold", "threshold")
    try:
        return 0.5 if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise LoadFailed(f"Unable to load model: its threshold {value} is not a number.") from error


def _predictor(params: Mapping[str, Any], symbol: str, outputs: int) -> str:
    told = str(_setting(params, "predictor_type") or "")
    if told in ("regressor", "binary_classifier", "multiclass_classifier"):
        return told
    if outputs > 1:
        return "multiclass_classifier"
    return "binary_classifier" if any(name in symbol for name in _SIGMOID_OPERATORS) else "regressor"


def _sigmoid(value: Any) -> Any:
    return np.exp(-np.logaddexp(0.0, -value))


def _softmax(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(values - values.max())
    shares: np.ndarray[Any, Any] = powers / powers.sum()
    return shares


def _encode(predictions: list[dict[str, Any]], accept: str) -> bytes:
    if accept == JSON:
        return codecs.encode_json({"predictions": predictions})
    if accept == JSONLINES:
        return codecs.encode_jsonlines(predictions)
    if accept == RECORDIO:
        return encode_recordio([{name: np.atleast_1d(value).tolist() for name, value in one.items()}
                                for one in predictions])  # fmt: skip
    return codecs.encode_csv_rows([_csv_fields(one) for one in predictions])


def _csv_fields(prediction: Mapping[str, Any]) -> list[Any]:
    score = prediction["score"]
    label = [prediction["predicted_label"]] if "predicted_label" in prediction else []
    return [*label, *(score if isinstance(score, list) else [score])]


HANDLER = LinearLearnerHandler
handle = entry_point(LinearLearnerHandler)
