"""
The houses of the sample models, and how a model becomes an archive; with numpy alone, as all environments have it.

They are synthetic: their price follows a formula that differs by city, plus noise.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20261121
HOUSES = 400
FEATURES = ("year_built", "square_feet", "bedrooms", "bathrooms", "lot_acres", "garage_spaces")
# City: (base price, price of a square foot, price of a year of age)
CITIES = {
    "houston": (60_000, 120, -600),
    "los_angeles": (250_000, 420, -300),
    "chicago": (80_000, 180, -400),
    "new_york": (300_000, 520, -150),
    "san_francisco": (400_000, 640, -100),
    "austin": (120_000, 260, -700),
    "denver": (140_000, 280, -500),
    "seattle": (210_000, 390, -350),
    "boston": (240_000, 410, -120),
    "miami": (130_000, 300, -550),
}


def write(models: Path, name: str, fill: Callable[[Path], object]) -> None:
    """`models/name/` filled by `fill`, and the same packed as `models/name.tar.gz`."""
    folder = models / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    fill(folder)
    with tarfile.open(models / f"{name}.tar.gz", "w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)


def houses(city: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features of shape (HOUSES, 6) and prices of shape (HOUSES,)."""
    random = np.random.default_rng([SEED, sorted(CITIES).index(city)])
    year = random.integers(1950, 2026, HOUSES)
    feet = random.normal(2000, 500, HOUSES).clip(500).round()
    bedrooms = random.integers(1, 7, HOUSES)
    bathrooms = random.integers(2, 9, HOUSES) / 2
    lot = random.normal(0.6, 0.25, HOUSES).clip(0.05).round(2)
    garage = random.integers(0, 4, HOUSES)
    base, per_foot, per_year = CITIES[city]
    price = base + per_foot * feet + per_year * (2026 - year) + 9_000 * bedrooms + 12_000 * bathrooms
    price = price + 40_000 * lot + 8_000 * garage + random.normal(0, 8_000, HOUSES)
    return np.column_stack([year, feet, bedrooms, bathrooms, lot, garage]), price
