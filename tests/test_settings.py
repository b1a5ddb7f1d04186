"""Settings: from the command line, the environment and a file; and the help that tells of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner
from polyhost.cli import cli
from polyhost.config import Config, flag_of, grouped
from polyhost.errors import InvalidSetting
from polyhost.settings_changes import SettingsChanges


def settings_in(folder: Path, text: str) -> dict[str, list[str]]:
    """As `--config FILE` with this text."""
    (folder / "polyhost.toml").write_text(text)
    return {"config": [str(folder / "polyhost.toml")]}


def test_the_command_line_wins_over_the_environment_it_over_the_file_it_over_the_default(tmp_path: Path) -> None:
    file = settings_in(tmp_path, "port = 4")
    environ = {"POLYHOST_PORT": "2", "SAGEMAKER_BIND_TO_PORT": "3"}

    assert Config.build({**file, "port": ["1"]}, environ).port == 1
    assert Config.build(file, environ).port == 2
    assert Config.build(file, {"SAGEMAKER_BIND_TO_PORT": "3"}).port == 3
    assert Config.build(file, {}).port == 4
    assert Config.build({}, {"POLYHOST_CONFIG": file["config"][0]}).port == 4
    assert Config.build(settings_in(tmp_path, ""), {}).port == 8080


def test_a_file_wins_over_a_default_of_the_platforms(tmp_path: Path) -> None:
    multi_model = {"SAGEMAKER_MULTI_MODEL": "true"}

    assert Config.build(settings_in(tmp_path, "drain-secs = 3"), multi_model).drain_secs == 3
    assert Config.build(settings_in(tmp_path, ""), multi_model).drain_secs == 25


def test_settings_stand_in_their_tables_or_outside(tmp_path: Path) -> None:
    config = Config.build(
        settings_in(
            tmp_path,
            """
            memory-budget = "1.5GiB"
            hardened = true
            [endpoint]
            preload = ["a.tar.gz", "b.tar.gz"]
            [access]
            allowed-origin = "https://one.example"
            [limits]
            keep-alive-secs = 2.5
            """,
        ),
        {},
    )

    assert config.memory_budget == 3 * 2**29
    assert config.hardened is True
    assert config.preload == ("a.tar.gz", "b.tar.gz")
    assert config.allowed_origin == ("https://one.example",)
    assert config.keep_alive_secs == 2.5


@pytest.mark.parametrize("field", [field for _, fields in grouped() for field in fields if field.name != "config"])
def test_every_setting_may_stand_in_its_table(tmp_path: Path, field: dataclasses.Field[object]) -> None:
    """Where its value is wrong, the file and the name are told; a table of its own knows it."""
    (table,) = (group.lower() for group, fields in grouped() if field in fields)
    name = flag_of(field).removeprefix("--")

    with pytest.raises(InvalidSetting, match=f"polyhost.toml: {name}: write a text, a number, true, false"):
        Config.build(settings_in(tmp_path, f"[{table}]\n{name} = 2026-11-21"), {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('memory_budget = "4GiB"', r"there is no setting memory_budget: did you mean memory-budget\?$"),
        ("[cache]\nmemory-budge = 1", "there is no setting memory-budge: did you mean memory-budget?"),
        ("zzz = 1", "there is no setting zzz. There are access-log, allowed-origin, auth"),
        ("[endpoints]\nmodels = 'x'", r"there is no table \[endpoints\]: did you mean endpoint?"),
        ("[server]\nmodels = 'x'", r"models is not in the table \[server\] but in \[endpoint\]"),
        ("port = 1\n[server]\nport = 2", "port is there twice"),
        ("config = 'x'", "there is no setting config"),
        ("port = [1, 2]", "polyhost.toml: port: write one value, not a list"),
        ("port = 'x'", "polyhost.toml: port: 'x' is not a port: use 1 to 65535"),
        ("preload = [{a = 1}]", "preload: write a text, a number, true, false, or a list of these"),
        ("port = ", "polyhost.toml is not TOML: Invalid value"),
        ("port = " + "[" * 20_000, "polyhost.toml is not TOML: maximum recursion depth"),
        ("port = 0x" + "f" * 5000, "port: write a text, a number"),
        ("# " + "x" * 300_000, "polyhost.toml is not TOML: it has more than 262144 bytes"),
    ],
)
def test_what_a_file_may_not_hold_is_said(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidSetting, match=words):
        Config.build(settings_in(tmp_path, text), {})


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, r"cannot be read \(No such file or directory\)"), (b"\xff\xfe", "is not TOML: 'utf-8' codec")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "polyhost.toml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(InvalidSetting, match=f"--config: {file} {words}"):
        Config.build({}, {"POLYHOST_CONFIG": str(file)})


def test_an_archive_in_the_place_of_its_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").touch()

    with pytest.raises(InvalidSetting, match="is a file: name the folder that it lies in"):
        Config.build({"models": [str(tmp_path / "model.tar.gz")]}, {})


# The help


def commands(command: click.Command, *names: str) -> Iterator[tuple[str, click.Command]]:
    """It and all below it, by what is typed."""
    yield " ".join(names), command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, *names, name)


COMMANDS = dict(commands(cli, "polyhost"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_sentences_with_types(name: str) -> None:
    for option in COMMANDS[name].params:
        if not isinstance(option, click.Option) or option.hidden:
            continue
        words = (option.help or "").partition("[")[0].rstrip()
        assert words[:1].isupper(), option.name
        assert words.endswith(".") or "].".endswith(str(option.help)[-2:]), option.name
        assert option.is_flag or option.metavar, f"{option.name}: of which type is it?"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_summary_is_cut_off(name: str) -> None:
    """A list of commands has the whole first sentence of each."""
    text = CliRunner().invoke(cli, [*name.split()[1:], "--help"]).output

    assert text.startswith(f"Usage: {cli.name} {' '.join(name.split()[1:])}".rstrip())
    assert "...\n" not in text.partition("\n")[2]
    assert "\\" not in text  # click's marks, where they are not understood


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if hasattr(command, "_groups")])
def test_every_option_and_every_command_has_its_group(name: str) -> None:
    text = CliRunner().invoke(cli, [*name.split()[1:], "--help"]).output

    rest = text.partition("\nMore:\n")[2]
    assert [line.strip() for line in rest.splitlines()] in ([], ["-h, --help  Show this message and exit."])


def test_a_switch_can_be_taken_back() -> None:
    """What a file has switched on the command line switches off."""
    (hardened,) = (option for option in COMMANDS["polyhost serve"].params if option.name == "hardened")
    assert isinstance(hardened, click.Option)

    assert (hardened.opts, hardened.secondary_opts) == (["--hardened"], ["--no-hardened"])


def test_models_are_named_once() -> None:
    done = CliRunner().invoke(cli, ["serve", "one", "--models", "two"])

    assert isinstance(done.exception, InvalidSetting)
    assert "--models and FOLDER mean the same" in str(done.exception)


# Completion


@pytest.mark.parametrize(
    ("typed", "begun", "offered"),
    [
        ([], "ser", ["serve"]),
        (["serve"], "--memory", ["--memory-budget"]),
        (["serve", "--engine"], "", ["native", "mms"]),
        (["serve", "--auth"], "s", ["sigv4"]),
        (["serve", "--tls-cert"], "ce", ["ce"]),
        (["fleet"], "w", ["warm"]),
        (["completion"], "f", ["fish"]),
    ],
)
def test_the_shell_completes_commands_options_and_values(typed: list[str], begun: str, offered: list[str]) -> None:
    kind = get_completion_class("bash")
    assert kind is not None
    found = kind(cli, {}, "polyhost", "_POLYHOST_COMPLETE").get_completions(typed, begun)

    assert [item.value for item in found] == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])

    assert done.exit_code == 0
    assert f"_POLYHOST_COMPLETE={shell}_complete" in done.output


# A file that changes while the server runs


def changing(folder: Path, text: str) -> tuple[SettingsChanges, Path]:
    flags = {**settings_in(folder, text), "host": ["127.0.0.2"]}

    def build() -> Config:
        return Config.build(flags, {"POLYHOST_PORT": "2"})

    return SettingsChanges(build(), build), folder / "polyhost.toml"


def test_what_needs_a_restart_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Compared with what the server has started with. What the command line says, or a variable, has not changed."""
    changes, file = changing(tmp_path, 'memory-budget = "1GiB"\nauth = "off"')

    file.write_text('memory-budget = "2GiB"\nmax-connections = 5\nhost = "::1"\nport = 3\npreload = "a.tar.gz"')
    for _ in range(2):
        assert changes.look().preload == ("a.tar.gz",)
    file.write_text('memory-budget = "1024MiB"')
    assert changes.look().preload == ()

    words = "the new values of max-connections, memory-budget need a restart: the server goes on with the old ones."
    assert [record.message for record in caplog.records] == [f"{file}: {words}"] * 2


def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes, file = changing(tmp_path, 'preload = "a.tar.gz"')

    for text in ("port =", "prot = 5", "drain-secs = 0"):
        file.write_text(text)
        assert changes.look().preload == ("a.tar.gz",)
    file.unlink()
    assert changes.look().preload == ("a.tar.gz",)

    assert len(caplog.records) == 4
    assert all("What was read before stays in force." in record.message for record in caplog.records)


def test_without_a_file_nothing_is_read_again() -> None:
    config = Config()

    assert SettingsChanges(config, None).look() is config
    assert SettingsChanges(config, lambda: Config(port=5)).look() is config
