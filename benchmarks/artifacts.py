"""The models that are measured: boosters trained with a fixed seed, and folders that hold them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import xgboost

SEED = 20261121
BOOSTERS = 20
TREES = 25
FEATURES = 6
HOUSES = 400
# One request's body: a house.
ROW = (1998, 2150, 3, 2.5, 0.4, 2)
ROW_CSV = ",".join(map(str, ROW)).encode()

# What a customer would write: MMS's function style, numpy and xgboost, nothing of Polyhost.
CUSTOM_HANDLER = """\
import os

import numpy as np
import xgboost

booster = None


def handle(data, context):
    global booster
    if booster is None:
        folder = context.system_properties["model_dir"]
        booster = xgboost.Booster(model_file=os.path.join(folder, "model.ubj"))
    if data is None:
        return None
    return [predict(bytes(item["body"]).decode()) for item in data]


def predict(line):
    row = np.array([line.split(",")], dtype=np.float32)
    return str(booster.predict(xgboost.DMatrix(row, nthread=1)).tolist())
"""

LENGTH_HANDLER = """\
def handle(data, context):
    if data is None:
        return None
    return [str(len(item["body"])) for item in data]
"""

MANIFEST = {
    "specificationVersion": "1.0",
    "runtime": "python",
    "model": {"modelName": "own", "modelVersion": "1.0", "handler": "handler:handle"},
}


class Artifacts:
    """Makes models in a folder of the benchmark's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._boosters: list[Path] = []

    def boosters(self) -> list[Path]:
        """Twenty files, each a booster of 25 trees and about 50 KB."""
        if not self._boosters:
            (self._folder / "boosters").mkdir()
            self._boosters = [self._train(number) for number in range(BOOSTERS)]
        return self._boosters

    def shared(self, count: int) -> list[Path]:
        """
        That many folders with a booster and no code: Polyhost's own XGBoost handler serves them.

        Beyond twenty, files are hard links: each model is a folder of its own, and the disk is not filled.
        """
        return [self._shared(number) for number in range(count)]

    def dedicated(self, count: int) -> list[Path]:
        """That many folders with a booster and a customer's own handler."""
        return [self._dedicated(number) for number in range(count)]

    def folder(self, name: str) -> Path:
        """An empty one, or that of this name."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def length(self) -> Path:
        """A model that answers how many bytes it got."""
        return self._with_handler("length", LENGTH_HANDLER)

    def _train(self, number: int) -> Path:
        random = np.random.default_rng([SEED, number])
        houses = random.normal(ROW, np.abs(ROW) * np.float64(0.2), (HOUSES, FEATURES))
        price = houses @ random.normal(100, 30, FEATURES) + random.normal(0, 500, HOUSES)
        data = xgboost.DMatrix(houses, price, nthread=1)
        parameters = {"max_depth": 5, "eta": 0.3, "objective": "reg:squarederror", "seed": SEED, "nthread": 1}
        path = self._folder / "boosters" / f"{number}.ubj"
        xgboost.train(parameters, data, num_boost_round=TREES).save_model(path)
        return path

    def _shared(self, number: int) -> Path:
        folder = self._folder / "shared" / f"{number // 1000}" / f"{number}"
        if not folder.exists():
            folder.mkdir(parents=True)
            os.link(self.boosters()[number % BOOSTERS], folder / "xgboost-model")
        return folder

    def _dedicated(self, number: int) -> Path:
        folder = self._with_handler(f"dedicated/{number}", CUSTOM_HANDLER)
        if not (folder / "model.ubj").exists():
            os.link(self.boosters()[number % BOOSTERS], folder / "model.ubj")
        return folder

    def _with_handler(self, name: str, handler: str) -> Path:
        folder = self._folder / name
        if not folder.exists():
            (folder / "MAR-INF").mkdir(parents=True)
            (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(MANIFEST))
            (folder / "handler.py").write_text(handler)
        return folder
