"""The command `polyhost`: the only reader of argv and of the settings' environment variables."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from polyhost import __version__
from polyhost.aws.commands import COMMANDS
from polyhost.config import Config, flag_of, settings_table, variable_of
from polyhost.errors import PolyhostError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="polyhost %(version)s")
def cli() -> None:
    """Serve thousands of machine-learning models from one container."""


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """One option for each field of Config."""
    for field in reversed(dataclasses.fields(Config)):
        meta = field.metadata
        default = meta["shown"] or field.default
        words = f"{meta['words']} [env: {variable_of(field)}; default: {default}]".replace("`", "")
        command = click.option(flag_of(field), field.name, multiple=True, metavar="VALUE", help=words)(command)
    return command


@cli.command()
@with_settings
def serve(**flags: Any) -> None:
    """Start the server and stay in the foreground until SIGTERM or Ctrl-C."""
    from polyhost.server import serve as run

    sys.exit(run(Config.build(flags, os.environ), os.environ))


@cli.command()
def settings() -> None:
    """Print every setting as a Markdown table."""
    click.echo(settings_table(), nl=False)


@cli.command("mms-path")
def mms_path() -> None:
    """Print the folder that, first on the PATH, puts Polyhost in the place of `multi-model-server`."""
    from polyhost.mms_command import COMMAND_FOLDER

    click.echo(COMMAND_FOLDER)


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> None:
    # As PID 1 of a container, signals without a handler are lost: docker-entrypoint blocks SIGTERM until here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
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
