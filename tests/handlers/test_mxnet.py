"""MXNet's checkpoints: pictures of every kind, tensors, broken archives; asked in MXNet's own Python environment."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import MXNET_PYTHON
from polyhost_handlers.base import ModelSource
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.mxnet_handler import MXNetHandler


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that mxnet_cases.py asks, by the names it gives: importing MXNet is what takes the time."""
    command = [MXNET_PYTHON, Path(__file__).with_name("mxnet_cases.py"), tmp_path_factory.mktemp("mxnet")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def best(answer: list[str]) -> str:
    return answer[0].rpartition("class=")[2]


@pytest.mark.mxnet
@pytest.mark.parametrize(
    "case",
    [
        "red PNG", "green PNG", "blue PNG", "red JPEG", "red RGBA", "red palette", "red CMYK",
        "blue JSON", "blue flat JSON", "blue npy", "blue CSV",
    ],
)  # fmt: skip
def test_the_best_class_is_the_colour(case: str, answers: dict[str, Any]) -> None:
    """Pictures of every kind and tensors in every format, the three classes from the most likely on."""
    answer = answers[case]

    assert best(answer) == case.split(maxsplit=1)[0]
    assert len(answer) == 3
    probabilities = [float(line.removeprefix("probability=").partition(",")[0]) for line in answer]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


PHOTOGRAPHS = (
    "PNG", "JPEG", "JPEG 4:4:4", "progressive JPEG", "turned JPEG", "grey JPEG", "CMYK JPEG", "alpha", "grey alpha",
    "palette", "one bit", "grey of 16 bits", "BMP",
)  # fmt: skip


@pytest.mark.mxnet
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_is_what_the_published_handler_makes_of_it(name: str, answers: dict[str, Any]) -> None:
    """Every pixel, whether the picture shrinks or grows, and so every answer."""
    assert {size: answers[f"{name} {size}"] for size in ("224x224", "31x17", "500x400", "400x50")} == dict.fromkeys(
        ("224x224", "31x17", "500x400", "400x50"), 0
    )
    ours, published = answers[f"{name} answer"]
    assert ours == published


@pytest.mark.mxnet
def test_a_picture_is_the_default(answers: dict[str, Any]) -> None:
    """Where the client does not say; and the default handler finds this one."""
    assert answers["no type"] == answers["red PNG"]
    assert answers["auto"] == "MXNetHandler"


@pytest.mark.mxnet
@pytest.mark.parametrize("case", ["grey", "grey16", "grey of RGB"])
def test_grey_pictures(case: str, answers: dict[str, Any]) -> None:
    """Of 8 and of 16 bits, which Pillow alone would make white."""
    assert answers[case] == [[1, 1, 4, 4], 200, 200]
    assert answers[f"{case} answer"] == 3
    assert answers["grey16 as RGB"] == [200]


@pytest.mark.mxnet
@pytest.mark.parametrize(
    ("case", "error", "sentence"),
    [
        ("empty", "NoContent", "no body"),
        ("text", "Unparseable", "not a readable image"),
        ("cut off", "Unparseable", "not a readable image"),
        ("bomb", "BadInput", "The image has 9000 by 9000 pixels: send fewer than 64000000."),
        ("large bomb", "Unparseable", "not a readable image"),
        ("no pixels", "Unparseable", "not a readable image"),
        ("TIFF", "Unparseable", "send JPEG or PNG"),
        ("EPS", "Unparseable", "send JPEG or PNG"),
        ("ragged JSON", "Unparseable", "of equal length"),
        ("object JSON", "Unparseable", "not lists of numbers"),
        ("huge number", "Unparseable", "not lists of numbers"),
        ("small npy", "BadInput", "The network takes numbers of shape [1, 3, 4, 4], the request has [5]."),
        ("text npy", "BadInput", "The network takes numbers of shape [1, 3, 4, 4], the request has [48]."),
        ("empty CSV", "NoContent", "no rows"),
        ("libsvm", "UnsupportedMediaType", "application/x-image"),
        ("accept CSV", "UnsupportedMediaType", "ask for application/json"),
        ("image for a vector", "BadInput", "The network takes [1, 2], which is not an image"),
    ],
)
def test_bad_requests(case: str, error: str, sentence: str, answers: dict[str, Any]) -> None:
    """Formats that Pillow reads by starting other programs among them."""
    assert answers[case][0] == error
    assert sentence in answers[case][1]


@pytest.mark.mxnet
def test_a_damaged_picture_is_a_picture_or_a_sentence(answers: dict[str, Any]) -> None:
    """Every byte of a JPEG turned over, one by one."""
    assert "damaged JPEG" not in answers


@pytest.mark.mxnet
def test_networks_of_other_shapes(answers: dict[str, Any]) -> None:
    """With a label that only training needs, without names of classes, with too few of them; the latest epoch."""
    assert best(answers["label"]) == "green"
    assert answers["latest epoch"] == "net-0012.params"
    assert len(answers["no synset"][0]) == 3
    assert sum(answers["no synset"][0]) == pytest.approx(1)
    assert [line.rpartition("class=")[2] for line in answers["short synset"]].count("red") == 1
    assert answers["vector"] == [[2, 4]]


@pytest.mark.mxnet
@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("no shapes", "net-shapes.json is missing; it names the input and its shape."),
        ("bad shapes", "net-shapes.json is not [{"),
        ("text shapes", "net-shapes.json is not [{"),
        ("other shapes", "net-symbol.json: MXNetError: Error in operator mean1: Check failed: "),
        ("absurd shapes", "net-shapes.json has the shape [1, 3, 40000, 40000], which no network takes."),
        ("negative shapes", "net-shapes.json has the shape [1, 3, -4, -4], which no network takes."),
        ("zero shapes", "net-shapes.json has the shape [0, 3, 4, 4], which no network takes."),
        (
            "no symbol",
            "one *-symbol.json with its *-0000.params belongs here, found net-0000.params, net-shapes.json",
        ),
        ("two networks", "one *-symbol.json with its *-0000.params belongs here, found b-0000.params, b-symbol.json"),
        ("text symbol", "net-symbol.json: "),
        ("cut off symbol", "net-symbol.json: "),
        ("text params", "net-symbol.json: "),
        ("cut off params", "net-symbol.json: "),
        ("empty params", "net-symbol.json: "),
        ("incomplete params", "net-0000.params has no fc_weight."),
    ],
)
def test_broken_archives(case: str, sentence: str, answers: dict[str, Any]) -> None:
    """One sentence: not the first line of MXNet's traceback, and no weights from whatever lay in memory."""
    kind, text = answers[case]

    assert kind == "LoadFailed"
    assert text.startswith(f"Unable to load model: {sentence}")
    assert "Traceback" not in text


def test_without_mxnet_the_sentence_says_what_to_install(tmp_path: Path) -> None:
    """This environment has none."""
    with pytest.raises(
        LoadFailed, match=r"mxnet cannot be imported here .* make its environment with polyhost env build mxnet-1.9"
    ):
        MXNetHandler.load(ModelSource(tmp_path, "m", {}))
