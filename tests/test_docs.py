"""The docs say what the code says."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import ROOT
from polyhost import __version__
from polyhost.cli import cli
from polyhost.config import Config, flag_of, parse_bytes, settings_table, variable_of
from polyhost.endpoint.errors import EndpointError
from polyhost.engine.errors import EngineError
from polyhost.errors import InvalidSetting, PolyhostError
from polyhost_handlers.artifacts import KINDS
from polyhost_handlers.errors import HandlerError
from support.endpoint import EndpointServer
from support.error_texts import error_codes, error_texts

README = (ROOT / "README.md").read_text()
TROUBLESHOOTING = ROOT / "docs" / "09-troubleshooting.md"
CODE = (ROOT / "container" / "polyhost", ROOT / "handlers" / "polyhost_handlers")


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
        assert f"`{kind.module}:handle`" in (ROOT / "docs" / "05-handlers.md").read_text()


def test_links_in_the_docs_lead_somewhere() -> None:
    """
    Every relative link of README and docs is a file.
    """
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_anchors_in_the_docs_are_headings() -> None:
    """
    Every link to a place of a page leads to a heading of that page.
    """
    for page in [ROOT / "README.md", ROOT / "deploy" / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            headings = re.findall(r"(?m)^#+ (.*)$", (page.parent / target if target else page).read_text())
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {target}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    """
    docs/README.md links each page, the numbered ones in their order.
    """
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text())
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}

    assert set(linked) == pages
    assert [page for page in linked if page[0].isdigit()] == sorted(page for page in pages if page[0].isdigit())


def test_the_page_start_starts(samples_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Its Python, as it stands there, asks a server for a prediction.
    """
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "01-start.md").read_text(), re.DOTALL)
    server = EndpointServer("native", samples_folder)
    try:
        exec(textwrap.dedent(code).replace("http://127.0.0.1:8080", server.url), {})
    finally:
        assert server.stop() == 0, server.process.log

    assert re.fullmatch(r"b'\[\d+\.\d+\]'", capsys.readouterr().out.strip())


# Troubleshooting


def words_of(text: str) -> str:
    """Without Markdown's code signs, on one line."""
    return " ".join(text.replace("`", "").split())


def test_every_error_text_has_its_cure() -> None:
    """
    The longest fixed piece of whatever the code says to a client or operator is on the page.
    """
    page = words_of(TROUBLESHOOTING.read_text())
    texts = list(error_texts(CODE))
    # Their page has the beginning that all failed loads have once, above the table.
    pieces = {words_of(text.longest_piece).removeprefix("Unable to load model: "): text for text in texts}

    assert len(pieces) > 250
    assert [str(text) for piece, text in pieces.items() if piece not in page] == []


def test_every_status_type_and_exit_code_is_explained() -> None:
    """
    Of the trees of errors: each class's HTTP status with its type, each exit code, each of AWS's codes.
    """
    page = TROUBLESHOOTING.read_text()
    rows = re.findall(r"(?m)^\| (\d+) \| (.*?) \|", page)

    for kind in (kind for root in (EngineError, EndpointError, HandlerError) for kind in every_class(root)):
        where = f"{kind.__module__}.{kind.__name__}"
        assert any(status == str(kind.status) for status, _ in rows), where
        assert f"`{kind.type}`" in page, where
    exit_codes = {str(kind.exit_code) for kind in every_class(PolyhostError)} | {"0"}
    assert exit_codes <= {code for code, _ in rows}
    assert {code for code in error_codes(CODE) if f"`{code}`" not in page} == set()


def every_class(root: Any) -> list[Any]:
    return [root, *(kind for child in root.__subclasses__() for kind in every_class(child))]


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
