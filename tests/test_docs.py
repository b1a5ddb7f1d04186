"""The docs say what the code says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT
from polyhost import __version__
from polyhost.cli import cli
from polyhost.config import Config, flag_of, parse_bytes, settings_table, variable_of
from polyhost.errors import InvalidSetting
from polyhost_handlers.artifacts import KINDS

README = (ROOT / "README.md").read_text()


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


def test_the_changelog_knows_this_version() -> None:
    """
    The newest entry is the package's version.
    """
    (first, *_) = re.findall(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text())

    assert first == __version__


def test_every_target_of_make_is_one_call_of_a_script() -> None:
    """
    The Makefile has names, the scripts have the work.
    """
    makefile = (ROOT / "Makefile").read_text()
    scripts = re.findall(r"(?m)^\t@?(scripts/\S+)", makefile)

    assert scripts
    assert len(scripts) == len(re.findall(r"(?m)^\t", makefile))
    assert all((ROOT / script).exists() for script in scripts)
