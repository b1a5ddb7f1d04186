"""The docs say what the code says."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner
from conftest import ROOT
from polyhost import __version__
from polyhost.cli import cli
from polyhost.config import Config, flag_of, parse_bytes, settings_table, variable_of
from polyhost.errors import InvalidSetting
from polyhost_handlers.artifacts import KINDS
from support.endpoint import EndpointServer

README = (ROOT / "README.md").read_text()
# All pages that people read, but for what packages bring, and what tests compare with.
PAGES = sorted(
    page
    for folder in ("", "benchmarks", "deploy", "docs", "examples", "tests")
    for page in (ROOT / folder).glob("**/*.md" if folder else "*.md")
    if not {"node_modules", "results", ".venv"} & set(page.parts)
)

# A page answers one question. What is longer says something twice, or argues. Tables to look things up in are longer.
_MOST_WORDS = 1_500
_MOST_WORDS_OF = {"README.md": 950, "security.md": 3_700, "settings.md": 2_700, "troubleshooting.md": 8_000}


@pytest.fixture(scope="module")
def troubleshooting() -> ModuleType:
    """scripts/troubleshooting.py, which makes a page of the code's errors."""
    spec = importlib.util.spec_from_file_location("troubleshooting", ROOT / "scripts" / "troubleshooting.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["troubleshooting"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_settings_is_the_codes() -> None:
    """
    docs/settings.md is made by `polyhost settings`.
    """
    assert settings_table() in (ROOT / "docs" / "settings.md").read_text()


def test_every_setting_is_an_option_of_serve() -> None:
    """
    The help names each flag and its variable.
    """
    text = CliRunner().invoke(cli, ["serve", "--help"]).output
    for field in dataclasses.fields(Config):
        assert flag_of(field) in text
        assert variable_of(field) in text


def test_flags_win_over_variables_and_these_over_the_platforms() -> None:
    """
    The order in which a setting is looked for.
    """
    environ = {"POLYHOST_PORT": "2", "SAGEMAKER_BIND_TO_PORT": "3"}

    assert Config.build({"port": ["1"]}, environ).port == 1
    assert Config.build({"port": []}, environ).port == 2
    assert Config.build({}, {"SAGEMAKER_BIND_TO_PORT": "3"}).port == 3
    assert Config.build({}, {}).port == 8080
    assert Config.build({}, {"POLYHOST_MODEL_ROOT": "/a:/b"}).model_root == (Path("/a"), Path("/b"))
    with pytest.raises(InvalidSetting, match="SAGEMAKER_BIND_TO_PORT: 'x' is not a port"):
        Config.build({}, {"SAGEMAKER_BIND_TO_PORT": "x"})


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("2k", 2048), ("1.5GiB", 3 * 2**29), ("800 MB", 800 * 2**20)])
def test_sizes_have_units(text: str, size: int) -> None:
    """
    Powers of 1024, with or without the letters after them.
    """
    assert parse_bytes(text) == size


def test_every_kind_of_model_is_in_the_readmes_table() -> None:
    """
    The table of handlers names each kind and its handler.
    """
    for kind in KINDS:
        assert f"`{kind.name}`" in README
        assert f"`{kind.module}:handle`" in (ROOT / "docs" / "handlers.md").read_text()


def test_links_in_the_docs_lead_somewhere() -> None:
    """Every relative link of every page leads to a file, and to a heading of it where it names one."""
    assert len(PAGES) > 30
    assert [wrong for page in PAGES for wrong in broken_links(page)] == []


def broken_links(page: Path) -> list[str]:
    found = []
    # What stands in code is no link.
    text = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", page.read_text())
    for target, anchor in re.findall(r"\]\(((?!\w+:)[^)#\s]*)(?:#([^)]+))?\)", text):
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            found.append(f"{page.relative_to(ROOT)}: {target}#{anchor}")
    return found


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# One `code`\n")
    page = tmp_path / "a.md"
    page.write_text("# A\n[1](b.md) [2](b.md#one-code) [3](#a) [4](https://x.y/z.md#q) `[5](c.md)`")
    assert broken_links(page) == []

    page.write_text("[1](c.md) [2](b.md#two) [3](#b)")
    assert broken_links(page) == ["a.md: c.md#", "a.md: b.md#two", "a.md: #b"]


@pytest.mark.parametrize(
    "folder", ["container", "aws", "handlers", "deploy", "examples", "scripts", "tests", "benchmarks"]
)
def test_pages_that_the_code_names_are_there(folder: str) -> None:
    """Errors, help and comments send people to pages of docs/."""
    texts = (
        file.read_text(errors="replace")
        for suffix in ("py", "md", "yaml", "ipynb", "example", "service", "html", "js")
        for file in (ROOT / folder).rglob(f"*.{suffix}")
        if "site-packages" not in file.parts  # of an environment that a benchmark has made
    )
    named = {name for text in texts for name in re.findall(r"\bdocs/([\w-]+\.md)", text)}

    assert {name for name in named if not (ROOT / "docs" / name).exists()} == set()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "polyhost " in page.read_text()], ids=lambda page: page.stem
)
def test_commands_in_the_docs_are_real(page: Path) -> None:
    """Each line that begins with `polyhost` in a block of a shell: its commands and options are there."""
    blocks = re.findall(r"(?s)```sh\n(.*?)```", page.read_text())
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        if said := re.match(r"(?:[A-Z_]+=\S+ )*polyhost (.*?)(?:#|$)", line):
            known, words = options_of(said[1].split())
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


def options_of(words: list[str]) -> tuple[set[str], list[str]]:
    """Of the command that the words begin with, and the words that are left."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return {*known, "--help", "--version"}, words


def test_a_command_that_is_not_real_is_found() -> None:
    known, words = options_of(["fleet", "warm", "http://router:8080", "--models", "m", "--fast"])
    assert words == ["http://router:8080", "--models", "m", "--fast"]
    assert "--models" in known
    assert "--fast" not in known
    with pytest.raises(KeyError):
        options_of(["fleet", "cool"])


def test_every_page_is_in_the_index() -> None:
    """docs/README.md links each page once."""
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text())

    assert sorted(set(linked)) == sorted({page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"})


def test_pages_stay_short() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("[!R]*.md")]
    words = {page.name: len(page.read_text().split()) for page in pages}

    assert {name: count for name, count in words.items() if count > _MOST_WORDS_OF.get(name, _MOST_WORDS)} == {}


def test_the_page_start_starts(samples_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Its Python, as it stands there, asks a server for a prediction.
    """
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "start.md").read_text(), re.DOTALL)
    server = EndpointServer("native", samples_folder, "--preload", "houston.tar.gz")
    try:
        server.process.wait_for_line("ready for requests")  # a load may take longer than a call waits
        exec(textwrap.dedent(code).replace("http://127.0.0.1:8080", server.url), {})
    finally:
        assert server.stop() == 0, server.process.log

    assert re.fullmatch(r"b'\[\d+\.\d+\]'", capsys.readouterr().out.strip())


# Security


def test_every_promise_names_a_test_that_there_is() -> None:
    """
    docs/security.md: each row of promises and limits has one at least.
    """
    promises = (ROOT / "docs" / "security.md").read_text().partition("## Promises and their tests")[2]
    rows = [line for line in promises.splitlines() if line.startswith("| ") and " --- " not in line]
    named = [re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row) for row in rows]
    headings = [row for row, tests in zip(rows, named, strict=True) if not tests]

    assert len(headings) == 2, f"these name no test: {headings}"
    assert len(rows) > 20
    missing = {(file, test) for tests in named for file, test in tests if test not in _tests_in(file)}
    assert missing == set()


def _tests_in(file: str) -> set[str]:
    return set(re.findall(r"(?m)^(?:async )?def (test_\w+)", (ROOT / file).read_text()))


# Troubleshooting


def test_the_page_of_errors_is_made_from_the_code(troubleshooting: ModuleType) -> None:
    """Otherwise: `python scripts/troubleshooting.py --write`."""
    assert troubleshooting.PAGE.read_text() == troubleshooting.written()


def test_every_error_says_what_to_do_or_has_its_cure(troubleshooting: ModuleType) -> None:
    parts, problems = troubleshooting.filled()
    texts = {text.text for text in troubleshooting.error_texts() if text.is_fixed}
    page = troubleshooting.PAGE.read_text()

    assert problems == []
    assert len(texts) > 400
    assert all(part.do for part in parts)
    cured = [piece for part in parts for cure in part.cures for piece in cure["texts"]]
    silent = [text for text in texts if not troubleshooting.ErrorText("", 0, text).says_what_to_do]
    uncured = [text for text in silent if not any(piece in text for piece in cured)]
    assert [text for text in uncured if troubleshooting.shown(text) not in page] == []


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("The model needs 3 GiB. Unload a model or raise --memory-budget.", True),
        ("… is not a size: write for example 4GiB", True),
        ("RoleArn is required.", True),
        ("… is not an operation: there are ….", True),
        ("The header 'date' is not a date.", False),
        ("Model … did not answer within … s.", False),
        ("the model in … was not loaded: …", False),
    ],
)
def test_which_texts_say_what_to_do(troubleshooting: ModuleType, text: str, does: bool) -> None:
    assert troubleshooting.ErrorText("", 0, text).says_what_to_do is does


def test_every_status_type_and_exit_code_is_explained(troubleshooting: ModuleType) -> None:
    page = troubleshooting.PAGE.read_text()
    rows = set(re.findall(r"(?m)^\| (\d+) \|", page))
    trees = troubleshooting.trees()
    answers = [kind for name in ("endpoint", "container", "handler") for kind in trees[name]]

    assert len(answers) > 20
    assert {str(kind.status) for kind in answers} | {str(kind.exit_code) for kind in trees["command"]} <= rows
    assert {kind.type for kind in answers if f"`{kind.type}`" not in page} == set()
    assert {code for code in troubleshooting.error_codes() if f"`{code}`" not in page} == set()


def test_the_changelog_knows_this_version() -> None:
    """
    The newest entry, but for what is not released yet, is the package's version.
    """
    entries = re.findall(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())

    assert entries[entries[0] == "Unreleased"] == __version__


def test_every_target_of_make_is_one_call_of_a_script() -> None:
    """
    The Makefile has names, the scripts have the work.
    """
    makefile = (ROOT / "Makefile").read_text()
    scripts = re.findall(r"(?m)^\t@?(scripts/\S+)", makefile)

    assert scripts
    assert len(scripts) == len(re.findall(r"(?m)^\t", makefile))
    assert all((ROOT / script).exists() for script in scripts)
