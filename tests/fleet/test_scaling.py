"""The chart's rule of when there are to be more servers, as a real Prometheus computes it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.promql import tool

from fleet.test_chart import documents, rendered  # noqa: F401 - a fixture

LABELS = '{job="polyhost-servers", namespace="models", instance="a"}'


# Each second: requests, hits, evictions.
@pytest.mark.parametrize(
    ("lookups", "hits", "evictions", "servers"),
    [
        (100, 97, 3, 1.25),
        (100, 99, 1, 1.0),
        # Each model is missed once: that is no reason.
        (100, 50, 0, 0.5),
        (100, 100, 0, 0.5),
        (0, 0, 0, 0.5),
    ],
)
def test_misses_count_while_models_are_evicted(
    rendered: dict[str, dict[str, Any]], tmp_path: Path, lookups: int, hits: int, evictions: int, servers: float  # noqa: F811
) -> None:  # fmt: skip
    """The value is of the servers that there are: KEDA multiplies."""
    scaled = documents(rendered["all"])["ScaledObject", "polyhost"]["spec"]
    (query,) = (one["metadata"]["query"] for one in scaled["triggers"] if one["type"] == "prometheus")
    counted = {"lookups_total": lookups, "hits_total": hits}
    series = [
        {"series": f"polyhost_model_cache_{name}{LABELS}", "values": f"0+{60 * each}x40"}
        for name, each in counted.items()
    ]
    series.append({"series": f"polyhost_model_evictions_total{LABELS}", "values": f"0+{60 * evictions}x40"})
    # Of another release: it does not count.
    series.append({"series": 'polyhost_model_evictions_total{job="x", namespace="models"}', "values": "0+600x40"})
    test = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {"expr": query, "eval_time": "35m", "exp_samples": [{"labels": "{}", "value": servers}]}
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    ran = subprocess.run([tool("promtool"), "test", "rules", file], capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr
