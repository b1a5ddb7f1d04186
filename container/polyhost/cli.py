"""The command `polyhost`: the only reader of argv and of the settings' environment variables."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class
from polyhost_aws.commands import COMMANDS as AWS_COMMANDS

from polyhost import __version__
from polyhost.config import (
    Config,
    default_of,
    flag_of,
    grouped,
    name_of,
    parse_models,
    repeated,
    settings_table,
    variable_of,
)
from polyhost.environments.commands import env
from polyhost.errors import InvalidSetting, PolyhostError
from polyhost.fleet.commands import COMMANDS as FLEET_COMMANDS
from polyhost.help_groups import GroupedCommand, GroupedCommands
from polyhost.key_command import key
from polyhost.system import require_linux


@click.group(
    cls=GroupedCommands,
    groups={
        "Serve": ("serve", "demo", "env"),
        "Choose a host": ("size",),
        "Put many servers behind one address": ("fleet",),
        "Work with AWS, or a server in its place": ("models", "deploy", "destroy", "push", "add-role"),
        "Set up": ("settings", "key", "completion", "mms-path"),
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, message="polyhost %(version)s", help="Print the version and exit.")
def cli() -> None:
    """Serve thousands of machine-learning models from one server."""


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """One option for each field of Config."""
    for field in reversed([field for _, fields in grouped() for field in fields]):
        meta = field.metadata
        notes = f" [env: {variable_of(field)}; default: {default_of(field)}]"
        how: dict[str, Any] = {"multiple": True, "metavar": meta["metavar"], "shell_complete": _completion(field)}
        flag = flag_of(field)
        if isinstance(field.default, bool):
            how = {"default": None, "callback": lambda _context, _option, is_on: _SWITCHED[is_on]}
            flag = f"{flag}/--no-{name_of(field)}"
        words = f"{meta['words']}{repeated(field)}{notes}".replace("`", "")
        command = click.option(flag, field.name, help=words, **how)(command)
    return command


# What a switch on the command line is in texts, as environment variables have it.
_SWITCHED: dict[bool | None, tuple[str, ...]] = {True: ("on",), False: ("off",), None: ()}


def _completion(field: dataclasses.Field[Any]) -> Callable[..., list[CompletionItem]] | None:
    """What the shell offers as its value: choices, or files."""
    if choices := field.metadata["choices"]:
        return lambda _context, _option, begun: [CompletionItem(one) for one in choices if one.startswith(begun)]
    if field.metadata["parse"] in (Path, parse_models):
        return lambda _context, _option, begun: [CompletionItem(begun, type="file")]
    return None


@cli.command(
    cls=GroupedCommand,
    groups={group: [field.name for field in fields] for group, fields in grouped()},
)
@click.argument("folder", default="", metavar="[FOLDER|s3://BUCKET/PREFIX/]", type=click.Path())
@with_settings
def serve(folder: str, **flags: Any) -> None:
    """
    Serve models until Ctrl-C or SIGTERM.

    FOLDER, or the prefix of a bucket, holds the models' archives. It means the same as --models. Each option may also
    be given by an environment variable, or in the file of --config.
    """
    require_linux()
    from polyhost.greeting import greeting
    from polyhost.processes import flush_and_exit
    from polyhost.server import serve as run

    if folder and flags["models"]:
        raise InvalidSetting("--models and FOLDER mean the same: give one of them.")
    flags["models"] = (folder,) if folder else flags["models"]
    build = functools.partial(Config.build, flags, os.environ)
    config = build()
    flush_and_exit(run(config, os.environ, greeting(config) if folder else "", build))


@cli.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the models in this folder, and take those that are there already [default: a temporary folder].",
)
@click.option(
    "--port", default=8080, show_default=True, metavar="PORT", envvar="POLYHOST_PORT", show_envvar=True,
    help="Listen on this port.",
)  # fmt: skip
def demo(folder: Path | None, port: int) -> None:
    """
    Serve sample models, and print calls to try.

    The models are made first, in seconds: prices of houses, and one of each kind. Ctrl-C ends the server and leaves
    nothing. All settings of `polyhost serve` count, as environment variables.
    """
    require_linux()
    from polyhost.demo.command import demo as run
    from polyhost.processes import flush_and_exit

    flush_and_exit(run(folder, port, os.environ))


@cli.command()
def settings() -> None:
    """Print every setting as Markdown."""
    click.echo(settings_table(), nl=False)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """
    Print the script that completes this command in a shell.

    \b
    bash, in ~/.bashrc:  eval "$(polyhost completion bash)"
    zsh, in ~/.zshrc:    eval "$(polyhost completion zsh)"
    fish, once:          polyhost completion fish > ~/.config/fish/completions/polyhost.fish
    """  # noqa: D301 - click reads the character
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "polyhost", "_POLYHOST_COMPLETE").source())


@cli.command("mms-path")
def mms_path() -> None:
    """
    Print the folder that stands in for multi-model-server.

    With it first on the PATH, the command `multi-model-server` starts Polyhost.
    """
    from polyhost.mms_command import COMMAND_FOLDER

    click.echo(COMMAND_FOLDER)


# Sizing (docs/memory.md): imported by this command alone, never by the server.


@cli.command()
@click.argument("source")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take the traffic from this access log, or from a file with one target a line.",
)
@click.option("--zipf", type=float, metavar="EXPONENT", help="Let traffic follow Zipf's law [default: 1].")
@click.option("--requests-per-sec", type=float, metavar="RATE", help="Compute how many CPUs this rate needs.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME=GiB:CPUS:PRICE_PER_HOUR",
    help="Compare hosts of this kind. May be repeated.",
)
@click.option("--copies", default=1, metavar="N", show_default=True, help="Have each model on this many hosts.")
@click.option("--sample", default=20, metavar="N", show_default=True, help="Load and measure this many models.")
@click.option(
    "--request",
    "requests",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Send models this request, its type by the file's suffix. May be repeated [default: a row of zeros].",
)
@click.option(
    "--p99-ms",
    type=float,
    metavar="MILLISECONDS",
    help="Keep the 99th percentile of latency below this [default: find 99 % of models in memory].",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def size(as_json: bool, **options: Any) -> None:
    """
    Measure how much memory models need, and what hosts cost.

    SOURCE is s3://BUCKET/PREFIX/ or a folder of archives.
    """
    require_linux()
    from polyhost.sizing.command import Options, run

    click.echo(run(Options(**options), as_json=as_json, say=lambda words: click.echo(words, err=True)))


for _command in (*AWS_COMMANDS, *FLEET_COMMANDS, env, key):
    cli.add_command(_command)


def main() -> None:
    # As PID 1 of a container, signals without a handler are lost: docker-entrypoint blocks SIGTERM until here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if hasattr(signal, "pthread_sigmask"):  # not on Windows, where the command only says what to do
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        cli(standalone_mode=False)
    except PolyhostError as error:
        click.echo(f"polyhost: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
