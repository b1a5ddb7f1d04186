"""Named Python environments: what each is made of, and which of them a model gets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import joblib
import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from polyhost_handlers.artifacts import KINDS, kind_named
from polyhost_handlers.environments.choice import Choice, Need, Question, Refusal, Word, World, choose
from polyhost_handlers.environments.definitions import (
    BrokenDefinition,
    canonical,
    is_name,
    parse,
    read,
    shipped,
    variable_of,
    with_module,
    with_release,
)
from polyhost_handlers.environments.evidence import code_of, needs_of, words_of
from polyhost_handlers.wheels import same_import
from sklearn.linear_model import LinearRegression

SHIPPED = shipped()
OWN = {"scikit-learn": "1.9.1", "numpy": "2.4.6", "xgboost-cpu": "3.0.5"}


def test_the_environments_that_are_shipped() -> None:
    assert set(SHIPPED) == {
        "sklearn-1.2", "sklearn-1.4", "sklearn-current", "xgboost-3.0", "xgboost-current", "mxnet-1.9", "lightgbm",
        "catboost", "pytorch", "tensorflow-cpu", "mlflow",
    }  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_all_that_an_environment_asks_for_is_pinned(name: str) -> None:
    """So it is the same wherever it is built; and each of its handlers has what it needs."""
    definition = SHIPPED[name]
    for text in definition.requirements:
        asked = Requirement(text)
        assert asked.specifier.contains(definition.pins[canonicalize_name(asked.name)]), text
    kinds = {kind.name: kind for kind in KINDS}
    assert definition.kinds <= kinds.keys()
    for kind in definition.kinds:
        package = kinds[kind].package
        assert not package or set(same_import(package)) & definition.pins.keys(), kind


def test_what_a_handler_needs_is_in_an_environment() -> None:
    for kind in KINDS:
        if kind.package:
            assert any(one.serves(kind.name) for one in SHIPPED.values()), kind.name


def need(package: str, release: str = "", *, is_vital: bool = True) -> Need:
    return Need(same_import(package), SpecifierSet(release), "requirements.txt", is_vital=is_vital)


def pickled_by(release: str) -> Need:
    return Need(("scikit-learn",), SpecifierSet(f"=={release}.*"), "model.joblib", is_vital=False)


SKLEARN_IMAGE = "sagemaker-scikit-learn:1.2-1-cpu-py3"
ARCHIVE, CONTAINER, SCRIPT = "polyhost.toml of the archive", "POLYHOST_ENVIRONMENT", "inference.py"

# What is asked, which environments are installed, and what is chosen and why.
CHOSEN = [
    # Nothing is said: the server's own.
    ("sklearn", {}, "", ""),
    ("xgboost", {}, "sklearn-1.2 xgboost-3.0", ""),
    # 1. Words, the more special first; for what the environment serves.
    ("sklearn", {"words": [Word("sklearn-1.2", CONTAINER)]}, "sklearn-1.2", "sklearn-1.2"),
    ("sklearn", {"words": [Word("sklearn-1.4", ARCHIVE), Word("sklearn-1.2", CONTAINER)]}, "sklearn-1.2 sklearn-1.4",
     "sklearn-1.4"),
    ("sklearn", {"words": [Word("sklearn-1.2", CONTAINER)], "image": "sagemaker-scikit-learn:1.4-2-cpu-py3"},
     "sklearn-1.2 sklearn-1.4", "sklearn-1.2"),
    ("xgboost", {"words": [Word("sklearn-1.2", CONTAINER)]}, "sklearn-1.2", ""),
    ("xgboost", {"words": [Word("sklearn-1.2", CONTAINER)]}, "", ""),
    ("mxnet", {"words": [Word("sklearn-1.2", CONTAINER)], "needs": [need("mxnet")]}, "mxnet-1.9", "mxnet-1.9"),
    ("", {"words": [Word("mxnet-1.9", CONTAINER)]}, "mxnet-1.9", "mxnet-1.9"),
    ("script", {"words": [Word("", CONTAINER), Word("pytorch", SCRIPT)]}, "pytorch", "pytorch"),
    ("script", {"words": [Word("by-hand", CONTAINER)]}, "by-hand", "by-hand"),
    ("sklearn", {"words": [Word("by-hand", CONTAINER)]}, "by-hand", ""),
    # 2. The image, where its environment is there and has what is needed.
    ("sklearn", {"image": SKLEARN_IMAGE}, "sklearn-1.2", "sklearn-1.2"),
    ("script", {"image": SKLEARN_IMAGE}, "sklearn-1.2", "sklearn-1.2"),
    ("onnx", {"image": SKLEARN_IMAGE}, "sklearn-1.2", ""),
    ("sklearn", {"image": "sagemaker-scikit-learn:0.23-1-cpu-py3"}, "sklearn-1.2", ""),
    ("sklearn", {"image": SKLEARN_IMAGE, "needs": [pickled_by("1.4")]}, "sklearn-1.2 sklearn-1.4", "sklearn-1.4"),
    ("sklearn", {"image": SKLEARN_IMAGE, "needs": [pickled_by("1.9")]}, "sklearn-1.2", ""),
    ("sklearn", {"image": SKLEARN_IMAGE}, "", ""),
    # 3. and 4. What the model needs.
    ("sklearn", {"needs": [pickled_by("1.9")]}, "sklearn-1.2 sklearn-current", ""),
    ("sklearn", {"needs": [pickled_by("1.2")]}, "sklearn-1.2 sklearn-1.4", "sklearn-1.2"),
    ("script", {"needs": [need("xgboost", ">=3,<3.1")]}, "xgboost-3.0", ""),
    ("script", {"needs": [need("xgboost", ">=3.1")]}, "xgboost-3.0 xgboost-current", "xgboost-current"),
    ("script", {"needs": [need("catboost"), need("numpy")]}, "lightgbm catboost", "catboost"),
    # 5. Nothing has it, and the model may run all the same.
    ("sklearn", {"needs": [pickled_by("1.2")]}, "sklearn-1.4", ""),
    ("sklearn", {"needs": [pickled_by("0.23")]}, "sklearn-1.2", ""),
    ("script", {"needs": [need("nobody-has-this")]}, "sklearn-1.2", ""),
]  # fmt: skip


def world(installed: str, own: Mapping[str, str] = OWN) -> World:
    return World(shipped=SHIPPED, installed={name: SHIPPED.get(name) for name in installed.split()}, own=own)


@pytest.mark.parametrize(("kind", "asked", "installed", "chosen"), CHOSEN)
def test_which_environment_is_chosen(kind: str, asked: dict, installed: str, chosen: str) -> None:
    answer = choose(Question(kind=kind, **asked), world(installed))

    assert isinstance(answer, Choice)
    assert answer.environment == chosen
    assert answer.why or not chosen


REFUSED = [
    ("sklearn", {"words": [Word("sklearn-1.2", CONTAINER)]},
     "sklearn-1.2, which POLYHOST_ENVIRONMENT names, is not installed: run polyhost env build sklearn-1.2"),
    ("script", {"words": [Word("mine", CONTAINER)]},
     "is not installed: build it from a file of yours, or name its Python in POLYHOST_MINE_PYTHON"),
    ("script", {"words": [Word("../up", CONTAINER)]},
     "POLYHOST_ENVIRONMENT names the environment '../up': write a name such as sklearn-1.2"),
    ("catboost", {"needs": [need("catboost")]},
     "which is needed because requirements.txt asks for catboost, is not installed: run polyhost env build catboost"),
    ("script", {"needs": [need("torch", ">=2"), need("numpy")]},
     "asks for torch>=2, is not installed: run polyhost env build pytorch"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "asked", "words"), REFUSED)
def test_a_refusal_names_the_environment_and_the_command(kind: str, asked: dict, words: str) -> None:
    answer = choose(Question(kind=kind, **asked), world("mxnet-1.9"))

    assert isinstance(answer, Refusal)
    assert words in answer.sentence


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"image": SKLEARN_IMAGE}, "means sklearn-1.2, which is not installed: run polyhost env build sklearn-1.2"),
        ({"needs": [pickled_by("1.2")]}, "which sklearn-1.2 has, and that is not installed"),
    ],
)
def test_what_might_not_run_is_said_in_the_log(asked: dict, words: str) -> None:
    answer = choose(Question(kind="sklearn", **asked), world("mxnet-1.9"))

    assert isinstance(answer, Choice)
    assert (answer.environment, words in answer.why) == ("", True)


@pytest.mark.parametrize(
    ("kind", "asked", "missing"),
    [
        ("sklearn", {"words": [Word("sklearn-1.2", CONTAINER)]}, "sklearn-1.2"),
        ("script", {"words": [Word("mine", CONTAINER)]}, ""),
        ("catboost", {"needs": [need("catboost")]}, "catboost"),
        ("sklearn", {"image": SKLEARN_IMAGE}, "sklearn-1.2"),
        ("sklearn", {"needs": [pickled_by("1.2")]}, "sklearn-1.2"),
        ("sklearn", {"needs": [pickled_by("0.23")]}, ""),
        ("sklearn", {}, ""),
    ],
)
def test_which_environment_is_worth_building(kind: str, asked: dict, missing: str) -> None:
    assert choose(Question(kind=kind, **asked), world("mxnet-1.9")).missing == missing


def test_an_environment_that_an_older_release_has_built() -> None:
    """Its kinds are not today's. It is called so, and not built under the processes that run in it."""
    old = World(
        shipped=SHIPPED, installed={"pytorch": msgspec.structs.replace(SHIPPED["pytorch"], kinds=frozenset())}, own=OWN
    )
    answer = choose(Question(kind="pytorch", needs=[need("torch")]), old)

    assert isinstance(answer, Refusal)
    assert answer.sentence.endswith("is installed as an older release defined it: run polyhost env build pytorch")
    assert answer.missing == ""


# What a model's files say


def said(folder: Path, handler: str, kind: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    code = code_of(folder, handler, kind_named(kind), environ)
    return [tuple(word) for word in words_of(folder, code, environ)]


def test_who_names_an_environment(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    script = tmp_path / "code" / "inference.py"
    script.write_text("import os\nPOLYHOST_ENVIRONMENT = 'pytorch'  # ours\n")
    (tmp_path / "polyhost.toml").write_text('# ours\nenvironment = "sklearn-1.2"\n')

    assert said(tmp_path, "auto", "script", {"POLYHOST_ENVIRONMENT": "mxnet"}) == [
        ("sklearn-1.2", ARCHIVE), ("mxnet-1.9", CONTAINER), ("pytorch", SCRIPT),
    ]  # fmt: skip
    handler = tmp_path / "shout.py"
    handler.write_text('POLYHOST_ENVIRONMENT = "catboost"\n')
    assert said(tmp_path, f"{handler}:handle", "", {})[1:] == [("catboost", "shout.py")]
    assert said(tmp_path, "shout.py:handle", "", {})[1:] == [("catboost", "shout.py")]
    assert said(tmp_path, "package.module:handle", "", {})[1:] == []
    assert said(tmp_path, "", "onnx", {}) == [("sklearn-1.2", ARCHIVE)]


@pytest.mark.parametrize(
    "text",
    [
        "environment = 'pytorch'\n", 'environment="pytorch"', "# ours\r\nenvironment = 'pytorch' # newest\r\n",
        "\ufeffenvironment = 'pytorch'\r\n", "environment = pytorch\n", "  environment\t=\t'pytorch'",
    ],
)  # fmt: skip
def test_settings_however_they_are_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "polyhost.toml").write_bytes(text.encode())

    assert said(tmp_path, "", "onnx", {}) == [("pytorch", ARCHIVE)]


@pytest.mark.parametrize(
    "text",
    [
        "import os\r\nPOLYHOST_ENVIRONMENT = 'pytorch'\r\n",
        "\ufeffPOLYHOST_ENVIRONMENT='pytorch'",
        "POLYHOST_ENVIRONMENT: Final[str] = 'pytorch'\n",
    ],
)
def test_a_scripts_word_however_it_is_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "inference.py").write_bytes(text.encode())

    assert said(tmp_path, "", "script", {}) == [("pytorch", SCRIPT)]


@pytest.mark.parametrize("text", ["", "[environment]\n", "environment = ''\n", "\0" * 70_000])
def test_settings_that_name_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "polyhost.toml").write_text(text)

    assert said(tmp_path, "", "onnx", {}) == []


def test_settings_that_are_no_file_are_not_opened(tmp_path: Path) -> None:
    """A pipe would hold the server up."""
    import os

    os.mkfifo(tmp_path / "polyhost.toml")
    assert said(tmp_path, "", "onnx", {}) == []


def needs(folder: Path, kind: str, *, looks_into_pickles: bool = True) -> list[tuple[str, str, bool]]:
    code = code_of(folder, "auto", kind_named(kind), {})
    found = needs_of(folder, kind_named(kind), code, looks_into_pickles=looks_into_pickles)
    return [(one.names[0], str(one.release), one.is_vital) for one in found]


def test_what_requirements_ask_for(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").touch()
    assert needs(tmp_path, "script") == []
    (tmp_path / "code" / "requirements.txt").write_text(
        "# ours\n--find-links /wheels\ntorch==2.1.0  # newest\nXGBoost\nnot a requirement !\n./local\n"
        "pandas>=2 ; python_version < '3'\nscikit_learn[extra]~=1.2\n"
    )

    assert needs(tmp_path, "script") == [
        ("torch", "==2.1.0", True), ("xgboost", "", True), ("scikit-learn", "~=1.2", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "is_around"),
    [
        ("def input_handler(data, context):\n    ...\n\n\ndef output_handler(response, context):\n    ...\n", True),
        ("import json\r\n\r\ndef handler(data, context):\r\n    ...\r\n", True),
        ("from ours import input_handler, output_handler", True),
        ("from ours import other as output_handler", True),
        ("handler = functools.partial(answer, 3)\n", True),
        ("def model_fn(model_dir):\n    ...\n\n\ndef handler(data, context):\n    ...\n", False),
        ("from ours import model_fn, handler\n", False),
        ("def my_handler(data):\n    ...\n\n\nlogging.handler = None\nhandlers = []\n", False),
        ("class Ours:\n    def handler(self):\n        ...\n", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("model", ["1/saved_model.pb", "export/Servo/2/saved_model.pb", "model.keras", "model.onnx"])
def test_a_script_around_a_tensorflow_model(tmp_path: Path, script: str, model: str, *, is_around: bool) -> None:
    """It names no environment where it was written for SageMaker's own container, and need not."""
    for path, content in ((tmp_path / "code" / "inference.py", script), (tmp_path / model, "")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())

    expected = [("tensorflow", "", True)] if is_around and model != "model.onnx" else []
    assert needs(tmp_path, "script") == expected


@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_which_release_has_pickled_a_model(tmp_path: Path, compress: int | tuple[str, int]) -> None:
    import sklearn

    joblib.dump(LinearRegression().fit([[1.0], [2.0]], [1.0, 2.0]), tmp_path / "model.joblib", compress)
    release = ".".join(sklearn.__version__.split(".")[:2])

    assert needs(tmp_path, "sklearn") == [("scikit-learn", f"=={release}.*", False)]
    assert needs(tmp_path, "sklearn", looks_into_pickles=False) == []


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"x\x9c", b"]\0\0\xff\xff"])
def test_a_damaged_pickle_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.joblib").write_bytes(content)

    assert needs(tmp_path, "sklearn") == []


# Definitions

GOOD = 'about = "a"\npython = ">=3.10"\nkinds = ["script"]\nrequirements = ["numpy"]\n'


def test_a_definition_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine-1.0.toml"
    file.write_text(GOOD + 'constraints = ["NumPy==2.0.1"]\nimages = ["mine:1.*"]\n[variables]\nA = "1"\n')
    mine = read(file)

    assert (mine.name, mine.pins, mine.variables) == ("mine-1.0", {"numpy": "2.0.1"}, {"A": "1"})
    assert [mine.means(image) for image in ("mine:1.2", "mine:2", "other:1.2")] == [True, False, False]
    assert [mine.serves(kind) for kind in ("script", "", "sklearn")] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("mine", "about = ", "cannot be read"),
        ("mine", GOOD + 'colour = "red"\n', "unknown field `colour`"),
        ("mine", GOOD.replace("numpy", "numpy >>"), "cannot be read"),
        ("mine", GOOD.replace(">=3.10", "three"), "three"),
        ("mine", GOOD + 'constraints = ["numpy>=2"]\n', "'numpy>=2' is not NAME==VERSION"),
        ("mine", "a = " + "[" * 10_000, "cannot be read"),
        ("Mine", GOOD, "is not the name of an environment"),
        ("..", GOOD, "is not the name of an environment"),
    ],
)
def test_a_definition_that_cannot_be_read(name: str, text: str, words: str) -> None:
    with pytest.raises(BrokenDefinition, match=re.escape(words)):
        parse(name, text)


@pytest.mark.parametrize("name", ["../../usr", "MXNet", "a b", ".a", "-a", "x" * 65, "a/b", ""])
def test_what_is_no_name_of_an_environment(name: str) -> None:
    """It becomes a part of a path."""
    assert not is_name(name)


def test_names_and_variables() -> None:
    assert (canonical("mxnet"), canonical("mxnet-1.9"), canonical("mine")) == ("mxnet-1.9", "mxnet-1.9", "mine")
    assert variable_of("sklearn-1.2") == "POLYHOST_SKLEARN_1_2_PYTHON"
    assert [with_release("scikit-learn", release) for release in ("1.2.1", "1.4.0", "0.23.2")] == [
        "sklearn-1.2", "sklearn-1.4", "",
    ]  # fmt: skip
    modules = ("lightgbm.sklearn", "catboost", "xgboost", "nobody.has.it")
    assert [with_module(module, "sklearn") for module in modules] == ["lightgbm", "catboost", "xgboost-3.0", ""]
