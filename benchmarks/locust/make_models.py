"""
Fifty-one churn models, one for each state and the District of Columbia, and rows to call them with.

Customers are synthetic: who leaves follows a formula that differs by state. The same seed, the same models.

    python -m benchmarks.locust.make_models FOLDER     FOLDER/models/churn/TX.tar.gz …, FOLDER/rows.csv
"""

from __future__ import annotations

import concurrent.futures
import csv
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import xgboost

SEED = 20261121
CUSTOMERS = 1500
ROUNDS = 200
ROWS = 3000
# By census, 2020, thousands: how often a state's customers call.
POPULATION = {
    "AL": 5024, "AK": 733, "AZ": 7152, "AR": 3012, "CA": 39538, "CO": 5774, "CT": 3606, "DE": 990, "DC": 690,
    "FL": 21538, "GA": 10712, "HI": 1455, "ID": 1839, "IL": 12813, "IN": 6786, "IA": 3190, "KS": 2938, "KY": 4506,
    "LA": 4658, "ME": 1362, "MD": 6177, "MA": 7030, "MI": 10077, "MN": 5706, "MS": 2961, "MO": 6155, "MT": 1084,
    "NE": 1962, "NV": 3105, "NH": 1378, "NJ": 9289, "NM": 2118, "NY": 20201, "NC": 10439, "ND": 779, "OH": 11799,
    "OK": 3959, "OR": 4237, "PA": 13003, "RI": 1097, "SC": 5118, "SD": 887, "TN": 6910, "TX": 29146, "UT": 3272,
    "VT": 643, "VA": 8631, "WA": 7705, "WV": 1794, "WI": 5894, "WY": 577,
}  # fmt: skip
# Name, mean, deviation, decimals.
FEATURES = (
    ("account_days", 100, 40, 0), ("voice_mails", 8, 13, 0), ("day_minutes", 180, 54, 1), ("day_calls", 100, 20, 0),
    ("evening_minutes", 200, 50, 1), ("evening_calls", 100, 20, 0), ("night_minutes", 200, 50, 1),
    ("night_calls", 100, 19, 0), ("foreign_minutes", 10, 3, 1), ("foreign_calls", 4, 2, 0),
    ("service_calls", 1.6, 1.3, 0), ("foreign_plan", 0.1, 0.3, 0),
)  # fmt: skip


def make(folder: Path) -> None:
    """Into a folder that is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".models-"))
    try:
        (temp / "models" / "churn").mkdir(parents=True)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            # Training leaves other threads their turn.
            for state, booster in zip(POPULATION, threads.map(train, POPULATION), strict=True):
                pack(temp / "models" / "churn" / f"{state}.tar.gz", booster, temp)
        write_rows(temp / "rows.csv")
        temp.rename(folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def customers(random: np.random.Generator, count: int) -> np.ndarray:
    columns = [
        random.normal(mean, deviation, count).clip(0).round(decimals) for _, mean, deviation, decimals in FEATURES
    ]
    return np.column_stack(columns)


def train(state: str) -> xgboost.Booster:
    random = np.random.default_rng([SEED, *state.encode()])
    rows = customers(random, CUSTOMERS)
    weights = random.normal([0, -0.3, 0.8, 0.1, 0.4, 0, 0.2, 0, 0.2, -0.2, 1.2, 1.0], 0.2)
    means, deviations = np.array([feature[1:3] for feature in FEATURES], dtype=float).T
    leaning = ((rows - means) / deviations) @ weights + random.normal(0, 2, CUSTOMERS)
    data = xgboost.DMatrix(rows, leaning > 1.5, nthread=1)
    parameters = {
        "max_depth": 10, "eta": 0.1, "max_bin": 32, "objective": "binary:logistic", "seed": SEED, "nthread": 1,
    }  # fmt: skip
    return xgboost.train(parameters, data, num_boost_round=ROUNDS)


def pack(archive: Path, booster: xgboost.Booster, temp: Path) -> None:
    file = temp / "model.ubj"
    booster.save_model(file)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(file, "xgboost-model")
    file.unlink()


def write_rows(file: Path) -> None:
    """As many of a state as it has people."""
    random = np.random.default_rng(SEED)
    shares = np.array([*POPULATION.values()], dtype=float)
    states = random.choice([*POPULATION], ROWS, p=shares / shares.sum())
    with file.open("w", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["state", *(name for name, *_ in FEATURES)])
        for state, row in zip(states, customers(random, ROWS).tolist(), strict=True):
            writer.writerow([state, *(f"{value:g}" for value in row)])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
