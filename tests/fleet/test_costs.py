"""docs/fleet.md: its table of costs follows from the sizes that it names."""

from __future__ import annotations

import math
import re

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "fleet.md").read_text()
SIZES = {"KiB": 1024, "MiB": 1024**2}
SHARES = {"all": 1.0, "half": 0.5, "a tenth": 0.1}
ROWS = re.findall(
    r"(?m)^\| ([\d,]+) [\w ]+ \| ([\d.]+) (KiB|MiB) \| (all|half|a tenth) \| (\d+) % \| ([\d,]+) \| \$([\d,]+) \|$",
    PAGE,
)
USABLE_BYTES = 25 * 1024**3
DOLLARS = 181


def harmonic(number: float) -> float:
    return math.log(number) + 0.5772156649 + 1 / (2 * number)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:4]))
def test_hosts_and_hits_follow_from_sizes(row: tuple[str, ...]) -> None:
    models, size, unit, share, hits, hosts, dollars = row
    count = int(models.replace(",", ""))
    wanted = math.ceil(count * float(size) * SIZES[unit] * SHARES[share] / USABLE_BYTES)

    assert int(hosts.replace(",", "")) == wanted
    assert int(dollars.replace(",", "")) == wanted * DOLLARS
    assert int(hits) == round(100 * harmonic(count * SHARES[share]) / harmonic(count))


def test_the_table_was_read() -> None:
    assert len(ROWS) == 5
    assert f"${DOLLARS} a month" in PAGE
    assert "25 GiB of them" in PAGE
