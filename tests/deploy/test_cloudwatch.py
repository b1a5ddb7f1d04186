"""The CloudFormation template of the CloudWatch dashboard, as CloudFormation would fill it in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT
from polyhost.endpoint.measures.emf import take_metrics
from polyhost.endpoint.measures.tallies import Gauges, VariantTally

TEMPLATE = ROOT / "deploy" / "cloudwatch" / "dashboard.yaml"
# https://docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html
SAGEMAKER = {
    "AWS/SageMaker": {
        "Invocations", "InvocationsPerInstance", "Invocation4XXErrors", "Invocation5XXErrors", "ModelLatency",
        "OverheadLatency",
        "ModelLoadingWaitTime", "ModelUnloadingTime", "ModelDownloadingTime", "ModelLoadingTime", "ModelCacheHit",
    },
    "/aws/sagemaker/Endpoints": {"LoadedModelCount", "CPUUtilization", "MemoryUtilization", "DiskUtilization"},
}  # fmt: skip
# Of metric math: all that AWS's page "Using math expressions with CloudWatch metrics" lists and this template uses.
FUNCTIONS = {"RUNNING_SUM", "FILL"}
STATISTICS = re.compile(r"Sum|SampleCount|Average|Minimum|Maximum|p\d\d?")


def emf_names() -> set[str]:
    """All that Polyhost tells CloudWatch."""
    tally = VariantTally("polyhost", "AllTraffic")
    tally.invocations = tally.lookups = 1
    histograms = ("model_latency", "overhead_latency", "loading_wait", "downloading", "loading", "unloading")
    for histogram in histograms:
        getattr(tally, histogram).add(1.0)
    return set(take_metrics(tally, Gauges({("polyhost", "AllTraffic"): 1}, 0.5, 0.5, 0.5)))


class Filled:
    """As much of CloudFormation as the template needs."""

    def __init__(self, **given: str) -> None:
        from cfnlint.decode import cfn_yaml

        self.template = cfn_yaml.load(str(TEMPLATE))
        defaults = {name: str(about.get("Default", "")) for name, about in self.template["Parameters"].items()}
        assert set(given) <= set(defaults)
        self.names = {**defaults, **given, "AWS::Region": "eu-north-1"}

    @property
    def body(self) -> dict[str, Any]:
        document = json.loads(self.value(self.template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]))
        assert isinstance(document, dict)
        return document

    def value(self, node: Any) -> Any:
        match node:
            case {"Ref": name}:
                return self.names[name]
            case {"Condition": name}:
                return self.value(self.template["Conditions"][name])
            case {"Fn::Equals": [one, other]}:
                return self.value(one) == self.value(other)
            case {"Fn::Not": [condition]}:
                return not self.value(condition)
            case {"Fn::And": conditions}:
                return all(self.value(condition) for condition in conditions)
            case {"Fn::Or": conditions}:
                return any(self.value(condition) for condition in conditions)
            case {"Fn::If": [condition, one, other]}:
                return self.value(one if self.value(self.template["Conditions"][condition]) else other)
            case {"Fn::Sub": [text, more]}:
                names = {**self.names, **{name: self.value(node) for name, node in more.items()}}
                return re.sub(r"\$\{([\w:]+)\}", lambda match: names[match[1]], text)
            case _:
                assert isinstance(node, str), node
                return node


def metrics_of(body: dict[str, Any]) -> list[list[Any]]:
    """Those of all graphs, without expressions."""
    lines = [line for widget in body["widgets"] for line in widget["properties"].get("metrics", ())]
    return [line for line in lines if len(line) > 1]


SIZINGS = {"FirstEndpoint": "large", "SecondEndpoint": "two-small"}


@pytest.fixture(scope="module")
def sagemaker() -> dict[str, Any]:
    return Filled(**SIZINGS).body


def test_cfn_lint_has_nothing_to_say() -> None:
    """
    No error, no warning, no information.
    """
    lint = [
        sys.executable,
        "-c",
        "import sys, cfnlint.runner; sys.exit(cfnlint.runner.main())",
        "-c",
        "I",
        "--",
        TEMPLATE,
    ]
    check = subprocess.run(lint, capture_output=True, text=True, check=False)

    assert (check.returncode, check.stdout) == (0, ""), check.stdout + check.stderr


def test_two_sizings_on_sagemaker(sagemaker: dict[str, Any]) -> None:
    """
    Every metric is one that SageMaker has, in the namespace where it has it, of one of the two endpoints.
    """
    for namespace, name, *dimensions, _ in metrics_of(sagemaker):
        assert name in SAGEMAKER[namespace], name
        assert dimensions in [["EndpointName", name, "VariantName", "AllTraffic"] for name in SIZINGS.values()]


def test_all_that_either_reports_is_shown(sagemaker: dict[str, Any]) -> None:
    """
    No metric of SageMaker's or of ours has been forgotten.
    """
    assert {line[1] for line in metrics_of(sagemaker)} == emf_names() == set().union(*SAGEMAKER.values())


def test_an_endpoint_of_polyhost_beside_one_of_sagemakers() -> None:
    """
    Ours has one namespace; what it is called, in which region and of which variant is told.
    """
    body = Filled(**SIZINGS, SecondNamespace="Polyhost", VariantName="blue", Region="eu-west-1", Period="60").body
    namespaces = {(line[3], line[0]) for line in metrics_of(body)}
    graphs = [widget["properties"] for widget in body["widgets"] if widget["type"] == "metric"]

    assert namespaces == {*(("large", namespace) for namespace in SAGEMAKER), ("two-small", "Polyhost")}
    assert {line[5] for line in metrics_of(body)} == {"blue"}
    assert {(graph["region"], graph["period"]) for graph in graphs} == {("eu-west-1", 60)}


def test_two_polyhosts() -> None:
    """
    A namespace of ours for both.
    """
    body = Filled(**SIZINGS, FirstNamespace="Polyhost").body

    assert {line[0] for line in metrics_of(body)} == {"Polyhost"}


def test_the_region_is_the_stacks_unless_told(sagemaker: dict[str, Any]) -> None:
    """
    CloudWatch needs one in each graph.
    """
    regions = {widget["properties"].get("region") for widget in sagemaker["widgets"] if widget["type"] == "metric"}

    assert regions == {"eu-north-1"}


def test_the_columns_are_the_same(sagemaker: dict[str, Any]) -> None:
    """
    Below the averages, left and right differ in the endpoint and nothing else.
    """
    below = [widget for widget in sagemaker["widgets"] if widget["y"] >= 8]
    left, right = ([{**widget, "x": None} for widget in below if widget["x"] == x] for x in (0, 12))

    assert left
    assert json.dumps(left).replace("large", "two-small") == json.dumps(right)


def test_averages_on_top_are_sums_over_counts(sagemaker: dict[str, Any]) -> None:
    """
    Each expression is of functions that metric math has, over series of its own graph that are hidden themselves.
    """
    graphs = [widget["properties"]["metrics"] for widget in sagemaker["widgets"] if 0 < widget["y"] < 8]

    for lines in graphs:
        hidden = {line[-1]["id"]: line for line in lines if len(line) > 1}
        expressions = [line[0] for line in lines if len(line) == 1]
        assert [expression["label"] for expression in expressions] == list(SIZINGS.values())
        assert not any(line[-1]["visible"] for line in hidden.values())
        for expression in expressions:
            text = expression["expression"]
            assert set(re.findall(r"[A-Z_]{2,}", text)) == FUNCTIONS
            part, whole = re.findall(r"[a-z]\d", text)
            assert {hidden[part][3], hidden[whole][3]} == {expression["label"]}
            assert hidden[part][-1]["stat"] == "Sum"
            assert hidden[whole][-1]["stat"] == ("Sum" if hidden[whole][1] == "Invocations" else "SampleCount")


def test_the_grid_has_no_overlaps(sagemaker: dict[str, Any]) -> None:
    """
    CloudWatch's grid has 24 columns; statistics are such as it has.
    """
    taken = [
        (widget["x"] + column, widget["y"] + line)
        for widget in sagemaker["widgets"]
        for column in range(widget["width"])
        for line in range(widget["height"])
    ]

    assert len(taken) == len(set(taken))
    assert max(column for column, _ in taken) < 24
    assert all(STATISTICS.fullmatch(line[-1]["stat"]) for line in metrics_of(sagemaker))
