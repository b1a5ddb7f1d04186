"""
The notebooks of examples/, run from the first cell to the last against real servers.

Their last cells call AWS: by AWS's own variables (`AWS_ENDPOINT_URL_SAGEMAKER` …) they reach Polyhost instead, and moto
for what Polyhost is not. Only cells that need the SageMaker SDK are left out: it has an environment of its own, and
tests (tests/endpoint/test_sdk.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from botocore.exceptions import ClientError
from conftest import ROOT
from nbclient import NotebookClient
from support.endpoint import EndpointServer, served
from support.forms import by_form
from support.lru import lru_hits

NOTEBOOKS = ROOT / "examples" / "notebooks"
NAMES = ("1-house-prices", "2-bring-your-own-container", "3-pipeline-and-access", "4-churn")
# What the last cells ask for, and what nobody looks at here.
AWS = {"ON_AWS": "yes", "POLYHOST_IMAGE": "polyhost:native", "SAGEMAKER_ROLE": "arn:aws:iam::123456789012:role/any"}
# Of the longest cell, on a slow machine.
_CELL_SECS = 240
HOUSE = (1998, 2150, 3, 2.5, 0.4, 2)


class Laptop:
    """Where notebooks run: a kernel of this Python, with the sample models, an AWS that is moto, and no settings."""

    def __init__(self, folder: Path, samples: Path, aws_url: str) -> None:
        self._environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("container", "aws", "handlers")),
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_CONFIG_DIR": str(folder / "jupyter"),
            "SAMPLE_MODELS": str(samples),
            "AWS_ENDPOINT_URL": aws_url,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            **AWS,
        }

    def run(self, name: str, url: str, store: str | Path, *values: str, **environ: str) -> dict[str, Any]:
        """Execute a notebook; what it holds under these names in the end."""
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        notebook.cells = [cell for cell in notebook.cells if "sagemaker-sdk" not in cell.metadata.get("tags", ())]
        asked = ", ".join(f"{value!r}: {value}" for value in values)
        notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{asked}}}))"))
        endpoints = {"AWS_ENDPOINT_URL_SAGEMAKER": url, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url}
        given = {"POLYHOST_URL": url, "MODEL_STORE": str(store), **endpoints, **environ}
        client = NotebookClient(
            notebook, timeout=_CELL_SECS, startup_timeout=_CELL_SECS, resources={"metadata": {"path": str(NOTEBOOKS)}}
        )
        client.execute(env={**self._environ, **given})
        (output,) = notebook.cells[-1].outputs
        return dict(json.loads(output.text))


@pytest.fixture
def laptop(tmp_path: Path, samples_folder: Path, aws_url: str, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # this Python's kernel, whatever else its user has
    return Laptop(tmp_path, samples_folder, aws_url)


@pytest.fixture(scope="module")
def server(aws_url: str, bucket: str) -> Iterator[EndpointServer]:
    """Serves what is in the bucket."""
    environ = {"AWS_ENDPOINT_URL_S3": aws_url, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    with served(f"s3://{bucket}/", **environ) as server:
        yield server


def is_all_deleted(server: EndpointServer, **keys: str) -> bool:
    """Of what notebooks make; the endpoint of the command line stays."""
    sagemaker = server.client("sagemaker", **keys)
    assert [one["EndpointName"] for one in sagemaker.list_endpoints()["Endpoints"]] == ["polyhost"]
    assert sagemaker.list_endpoint_configs()["EndpointConfigs"] == []
    return sagemaker.list_models()["Models"] == []


def calls(server: EndpointServer, endpoint: str) -> list[Mapping[str, str]]:
    """The access log of the endpoints whose names begin so: the words with a `=`."""
    last = f"after-{endpoint}"
    with pytest.raises(ClientError):  # whose line comes after all others
        server.client("sagemaker-runtime").invoke_endpoint(EndpointName=last, Body=b"")
    server.process.wait_for_line(f" InvokeEndpoint endpoint={last} ")
    lines = [line for line in server.process.log.splitlines() if f" InvokeEndpoint endpoint={endpoint}-" in line]
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]


def true_price(base: float, per_foot: float, per_year: float) -> float:
    year, feet, bedrooms, bathrooms, acres, garage = HOUSE
    rooms = 9_000 * bedrooms + 12_000 * bathrooms
    return base + per_foot * feet + per_year * (2026 - year) + rooms + 40_000 * acres + 8_000 * garage


def test_house_prices(laptop: Laptop, server: EndpointServer, bucket: str) -> None:
    """
    Nine cities' prices are right, a tenth comes later; a new version has its own name, then takes the old one's.
    """
    saw = laptop.run(
        "1-house-prices", server.url, f"s3://{bucket}/prices",
        "CITIES", "prices", "first_ms", "second_ms", "before_upload", "miami", "old", "new", "replaced", "aws_prices",
    )  # fmt: skip

    truth = {city: true_price(*formula) for city, formula in saw["CITIES"].items()}
    assert set(saw["prices"]) == set(saw["first_ms"]) == set(saw["second_ms"]) == set(truth) - {"Miami"}
    assert saw["prices"] == {city: pytest.approx(truth[city], rel=0.15) for city in saw["prices"]}
    assert saw["before_upload"]["Code"] == "ValidationError"
    assert saw["miami"] == pytest.approx(truth["Miami"], rel=0.15)
    assert saw["old"] == saw["prices"]["Houston"]
    assert saw["new"] == pytest.approx(1.1 * saw["old"], rel=0.01)
    assert saw["replaced"] == saw["new"]
    assert saw["aws_prices"] == {**saw["prices"], "Houston": saw["new"], "Miami": saw["miami"]}
    statuses = [call["status"] for call in calls(server, "houses")]
    assert (statuses.count("400"), set(statuses)) == (1, {"200", "400"})
    assert is_all_deleted(server)


@pytest.mark.mxnet
def test_bring_your_own_container(laptop: Laptop, server: EndpointServer, bucket: str) -> None:
    """
    Two networks and ten copies classify a picture a hundred times; who was cold is what the server says, too.
    """
    saw = laptop.run(
        "2-bring-your-own-container", server.url, f"s3://{bucket}/pictures",
        "best", "refusal", "targets", "cold_ms", "hot_ms", "answers", "copies_agree", "aws_cold_ms", "aws_hot_ms",
    )  # fmt: skip

    assert [len(classes) for classes in saw["best"].values()] == [5, 5]
    assert all("random weights" in name for classes in saw["best"].values() for name in classes)
    assert saw["refusal"]["OriginalStatusCode"] == 400
    assert len(saw["targets"]) == 12
    assert len([target for target in saw["targets"] if target.startswith("team-b/")]) == 10
    assert (len(saw["cold_ms"] + saw["hot_ms"]), len(saw["aws_cold_ms"] + saw["aws_hot_ms"])) == (100, 30)
    assert saw["copies_agree"]
    assert saw["answers"]["resnet_18.tar.gz"] == saw["best"]["resnet_18.tar.gz"]
    seen = calls(server, "pictures")
    misses = [call["target"] for call in seen if call["loaded"] == "miss"]
    assert len(misses) == 2 + len(saw["cold_ms"]) + len(saw["aws_cold_ms"])
    assert set(misses) == set(saw["best"]) | set(saw["answers"])
    assert is_all_deleted(server)


def test_pipeline_and_access(laptop: Laptop, tmp_path: Path, aws_url: str) -> None:
    """
    Each city has its price, a deck costs what it was made to cost; the role reaches Boston's models alone.
    """
    principals = json.loads((NOTEBOOKS / "principals.json").read_text())
    owner, agent = principals["users"]
    keys = {"aws_access_key_id": owner["access_key_id"], "aws_secret_access_key": owner["secret_access_key"]}
    arguments = ("--auth", "sigv4", "--auth-file", str(NOTEBOOKS / "principals.json"))
    (tmp_path / "models").mkdir()
    with served(tmp_path / "models", *arguments) as server:
        saw = laptop.run(
            "3-pipeline-and-access", server.url, tmp_path / "models",
            "prices", "without_deck", "refusal", "as_agent", "as_role", "later", "aws_as_role",
            AWS_ENDPOINT_URL_STS=server.url,
            **{name.upper(): value for name, value in keys.items()},
        )  # fmt: skip

        assert saw["prices"]["boston"] > saw["prices"]["chicago"] > saw["prices"]["houston"]
        assert saw["prices"]["boston"] == pytest.approx(true_price(240_000, 410, -400) + 15_000, rel=0.02)
        assert saw["prices"]["boston"] - saw["without_deck"] == pytest.approx(15_000, abs=4_000)
        assert " from preprocessor with message " in saw["refusal"]["Error"]["Message"]
        assert all(answer.startswith("AccessDeniedException: ") for answer in saw["as_agent"].values())
        for answers in (saw["as_role"], saw["aws_as_role"]):
            assert answers["boston"] == saw["prices"]["boston"]
            for city in ("houston", "chicago"):
                assert answers[city].startswith("AccessDeniedException: User: arn:aws:sts::123456789012:assumed-role/")
        assert saw["later"] == saw["prices"]["boston"]
        assert is_all_deleted(server, **keys)
    for user in (owner, agent):
        assert user["secret_access_key"] not in server.process.log


@pytest.mark.second_stage
def test_churn(laptop: Laptop, tmp_path: Path) -> None:
    """
    With memory for all every call is a hit, with memory for a part of them fewer are; the answers agree.
    """
    calls = by_form(short=300, long=2000)
    (tmp_path / "models").mkdir()
    with served(tmp_path / "models") as large, served(tmp_path / "models", *small_budget()) as small:
        saw = laptop.run(
            "4-churn", large.url, tmp_path / "models",
            "list(POPULATION)", "ORDER", "hit_ratio", "loaded", "evictions", "percentiles", "own",
            "californian", "aws_percentiles", "different", "failed", POLYHOST_URL_SMALL=small.url,
            CALLS=str(calls), THREADS="1",
        )  # fmt: skip

        states = saw["list(POPULATION)"]
        assert (len(states), len(saw["ORDER"]), saw["loaded"]["all"]) == (51, calls, 51)
        assert saw["own"] > saw["californian"] > 0.5
        assert (saw["hit_ratio"]["all"], saw["evictions"]["all"]) == (1, 0)
        # How many fit varies while it runs: a model that comes again is compiled already, and takes less.
        assert 8 <= saw["loaded"]["a third"] <= 50
        fewest, most = (lru_hits([*states, *saw["ORDER"]], capacity) / calls for capacity in (8, 50))
        assert fewest <= saw["hit_ratio"]["a third"] <= most
        misses = round(calls * (1 - saw["hit_ratio"]["a third"]))
        assert 0 < saw["evictions"]["a third"] <= misses + 10
        assert (saw["different"], saw["failed"]) == (0, {"all": 0, "a third": 0})
        assert len(saw["aws_percentiles"]) == 2
        assert is_all_deleted(large)
        assert is_all_deleted(small)


def small_budget() -> list[str]:
    """As the notebook's first cell tells the reader to start the second server."""
    (words,) = re.findall(r"--memory-budget \S+", (NOTEBOOKS / "4-churn.ipynb").read_text())
    return str(words).split()


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_in_the_house_style(name: str) -> None:
    """
    Valid, ids for cells, no output, settings first, AWS last behind its guard; the README tells of it.
    """
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 10 <= len(notebook.cells) <= 24
    assert (code[0].id, notebook.cells[0].cell_type) == ("settings", "markdown")
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    aws = [cell for cell in code if "aws" in cell.metadata.get("tags", ())]
    assert aws == code[-len(aws) :] != []
    assert all(cell.source.startswith("if ON_AWS:\n") for cell in aws)
    assert f"({name}.ipynb)" in (NOTEBOOKS / "README.md").read_text()
    links = [link for cell in notebook.cells for link in re.findall(r"\]\(([^)#:]+)", cell.source)]
    assert all((NOTEBOOKS / link).exists() for link in links if cell_is_link(link))


def cell_is_link(text: str) -> bool:
    """Not a call in code: `CITIES[city](…)` would look alike."""
    return text.endswith((".md", ".ipynb", ".json"))
