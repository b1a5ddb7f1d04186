"""
SageMaker's linear learner, read and computed with numpy; MXNet is not needed.

The archive is `model_algo-1`, a zip with `mx-mod-symbol.json`, `mx-mod-0000.params`, `additional-params.json` and
`manifest.json`, or these files unpacked. The symbol says how the weight lies and what follows it (linear_symbol.py);
`additional-params.json` has the kind of predictor and a binary classifier's threshold. Nothing is guessed: where they
do not tell, or do not fit together, the archive is refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import LINEAR_LEARNER_ARCHIVE, files_of
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.builtin_formats import OUTPUTS, Prediction, decode_features, encode_predictions
from polyhost_handlers.errors import LoadFailed, load_errors_named
from polyhost_handlers.linear_symbol import IDENTITY, MARGIN, SIGMOID, SOFTMAX, Linear, UnknownLayout, read_linear
from polyhost_handlers.media_types import JSON, choose_accept
from polyhost_handlers.ndarray_file import BrokenParams, read_params

# Ten million features in float32 are 40 MB; what unpacks to more than this is a zip bomb.
_MAX_MEMBER_BYTES = 1024**3
_SUFFIXES = (".json", ".params")
_SYMBOL = "mx-mod-symbol.json"
_PARAMS = "mx-mod-0000.params"
_ADDITIONAL = "additional-params.json"
REGRESSOR, BINARY, MULTICLASS = "regressor", "binary_classifier", "multiclass_classifier"


class LinearLearnerHandler(Handler):
    kind = "linear-learner"

    def __init__(self, linear: Linear, predictor: str, threshold: float, default_accept: str) -> None:
        self._linear = linear
        self._predictor = predictor
        self._threshold = threshold
        self._default_accept = default_accept

    @classmethod
    def load(cls, source: ModelSource) -> LinearLearnerHandler:
        files = _members(source.model_dir)
        missing = [name for name in (_PARAMS, _SYMBOL, _ADDITIONAL) if name not in files]
        if missing:
            raise LoadFailed(f"Unable to load model: no {missing[0]} among {', '.join(sorted(files)) or 'nothing'}.")
        try:
            linear = read_linear(files[_SYMBOL], read_params(files[_PARAMS]))
        except BrokenParams as error:
            raise LoadFailed(f"Unable to load model: its .params file is broken: {error}.") from error
        except UnknownLayout as error:
            raise LoadFailed(
                f"Unable to load model: {_SYMBOL} {error}. This is no linear learner as SageMaker trains it.",
            ) from error
        params = _json_object(files, _ADDITIONAL)
        predictor = _predictor(params, linear)
        threshold = _threshold(params) if predictor == BINARY else 0.0
        return cls(linear, predictor, threshold, source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = choose_accept(request.accept, OUTPUTS, self._default_accept)
        rows = decode_features(request, self._linear.weight.shape[0])
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = np.asarray(rows @ self._linear.weight) + self._linear.bias
            predictions = [self._prediction(output) for output in outputs]
        return encode_predictions(predictions, accept, _csv_fields)

    def _prediction(self, output: np.ndarray[Any, Any]) -> dict[str, Any]:
        if self._predictor == MULTICLASS:
            scores = _softmax(output)
            return {"score": scores.tolist(), "predicted_label": int(np.argmax(scores))}
        score = float(_sigmoid(output[0]) if self._linear.link == SIGMOID else output[0])
        if self._predictor == REGRESSOR:
            return {"score": score}
        return {"score": score, "predicted_label": int(score >= self._threshold)}


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


def _json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        document = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise LoadFailed(f"Unable to load model: {name} is not JSON: {error}") from error
    return document if isinstance(document, dict) else {}


def _threshold(params: Mapping[str, Any]) -> float:
    value = params.get("threshold")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise LoadFailed(f"Unable to load model: its threshold {value} is not a number.")
    return float(value)


# What each kind of predictor may end in: how many outputs, which links.
_ENDS: Mapping[str, tuple[str, Callable[[int], bool], tuple[str | None, ...]]] = {
    REGRESSOR: ("1 output", lambda outputs: outputs == 1, (IDENTITY, None)),
    # A hinge loss has no sigmoid: its score is the distance from the border.
    BINARY: ("1 output", lambda outputs: outputs == 1, (SIGMOID, MARGIN)),
    MULTICLASS: ("several outputs", lambda outputs: outputs > 1, (SOFTMAX,)),
}


def _predictor(params: Mapping[str, Any], linear: Linear) -> str:
    """The kind of predictor that the archive says it is, if its symbol is of that kind. Raises LoadFailed."""
    predictor = params.get("predictor_type")
    if not isinstance(predictor, str) or predictor not in _ENDS:
        raise LoadFailed(
            f"Unable to load model: {_ADDITIONAL} says predictor_type {predictor}: it is none of {', '.join(_ENDS)}.",
        )
    words, has_outputs, links = _ENDS[predictor]
    outputs = linear.weight.shape[1]
    if not has_outputs(outputs):
        raise LoadFailed(f"Unable to load model: a {predictor} has {words}, this model has {outputs}.")
    # A regressor answers what its loss compares with the label. What a classifier makes of it is not known.
    if linear.link not in links or (linear.loss and predictor != REGRESSOR):
        end = linear.loss or linear.link or "no output operator"
        raise LoadFailed(f"Unable to load model: {_SYMBOL} ends in {end}, which a {predictor} does not.")
    return predictor


def _sigmoid(value: Any) -> Any:
    return np.exp(-np.logaddexp(0.0, -value))


def _softmax(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(values - values.max())
    shares: np.ndarray[Any, Any] = powers / powers.sum()
    return shares


def _csv_fields(prediction: Prediction) -> list[Any]:
    score = prediction["score"]
    label = [prediction["predicted_label"]] if "predicted_label" in prediction else []
    return [*label, *(score if isinstance(score, list) else [score])]


HANDLER = LinearLearnerHandler
handle = entry_point(LinearLearnerHandler)
