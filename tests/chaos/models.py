"""
Archives of models that answer a constant which no other model has, so that a wrong answer is seen.

A constant says whose it is: the model's number, and how often its archive was overwritten. All are whole numbers that
a float32 holds exactly.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xgboost
from sklearn.dummy import DummyRegressor
from support.packing import tar

MIB = 1024**2
_VERSION_STEP = 1_000_000
# More of them would not be whole numbers that a float32 holds.
VERSIONS = 16
# The first constant of each kind.
_BASES = {"data": 10_000, "heavy": 30_000, "unruly": 50_000, "cold": 100_000, "other": 70_000}
HEAVY_MIB = 2
# Beside a booster of half a kilobyte, so that a transfer can be cut off in its middle.
_NOTES_BYTES = 4096


@dataclass(frozen=True)
class Model:
    """
    `kind`: data, an XGBoost model of a few KB; heavy, a pickle with 2 MiB beside its estimator; unruly, a script;
    cold and other, data again. `version` counts how often it was overwritten, up to `VERSIONS`.
    """

    kind: str
    number: int
    version: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:04}"

    @property
    def key(self) -> str:
        return f"{self.name}.tar.gz"

    @property
    def value(self) -> int:
        return _BASES[self.kind] + self.number + self.version * _VERSION_STEP

    @property
    def row(self) -> bytes:
        return b"0,0"

    def files(self) -> dict[str, bytes]:
        if self.kind == "unruly":
            code = Path(__file__).with_name("unruly.py").read_bytes()
            return {"code/inference.py": code, "value.txt": str(self.value).encode()}
        if self.kind == "heavy":
            return {"model.joblib": _pickle(self.value)}
        return {"xgboost-model": _booster(self.value), "notes.txt": os.urandom(_NOTES_BYTES).hex().encode()}

    def archive(self) -> bytes:
        return tar(*self.files().items())

    def write(self, folder: Path) -> Path:
        """As a folder, which is what MMS loads."""
        for name, data in self.files().items():
            path = folder / self.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder / self.name


def fleet(kind: str, count: int) -> list[Model]:
    return [Model(kind, number) for number in range(count)]


def is_value(body: bytes, values: frozenset[int]) -> bool:
    """Whether an answer is one of these constants: `[1234.0]` as our handlers write it, `1234` as the script does."""
    try:
        answer = json.loads(body)
        (number,) = answer if isinstance(answer, list) else [answer]
        return float(number) in values
    except (ValueError, TypeError):
        return False


def _booster(value: int) -> bytes:
    """The base score is the constant: the one leaf adds 0."""
    document = json.loads(_booster_of_nothing())
    document["learner"]["learner_model_param"]["base_score"] = str(value)
    return json.dumps(document).encode()


@functools.cache
def _booster_of_nothing() -> bytes:
    """Trained where there is nothing to learn: each label is the base score."""
    data = xgboost.DMatrix(np.zeros((2, 2)), label=np.full(2, 0.5))
    return bytes(xgboost.train({"base_score": 0.5, "max_depth": 1, "nthread": 1}, data, 1).save_raw("json"))


def _pickle(value: int) -> bytes:
    model = DummyRegressor(strategy="constant", constant=float(value)).fit(np.zeros((2, 2)), np.zeros(2))
    model.ballast = np.frombuffer(os.urandom(HEAVY_MIB * MIB), dtype=np.uint8)
    buffer = io.BytesIO()
    pickle.dump(model, buffer)
    return buffer.getvalue()
