"""`polyhost env`: read at every start of the command, so what is heavy is imported inside."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from polyhost.errors import EnvironmentFailed

_folder = click.option(
    "--environments-folder",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(sys.prefix, "envs"),
    envvar=["POLYHOST_ENVIRONMENTS_FOLDER", "POLYHOST_ENVIRONMENTS"],
    show_envvar=True,
    metavar="FOLDER",
    help="Keep environments in this folder  [default: envs beside the server's own packages].",
)


@click.group()
def env() -> None:
    """
    Manage Python environments for models of other releases.

    docs/environments.md says which there are, and how a model gets its own.
    """


@env.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME|FILE.toml…")
@_folder
@click.option("--python", default="", metavar="PATH", help="Build with this Python [default: the first that fits].")
@click.option(
    "--find-links",
    multiple=True,
    metavar="FOLDER",
    help="Take wheels from this folder, and nothing from an index. May be repeated.",
)
@click.option("--index-url", default="", metavar="URL", help="Take packages from this index, e.g. one of CPU builds.")
@click.option("--rebuild", is_flag=True, help="Build environments anew that are there already.")
@click.option("--server-packages", type=click.Path(path_type=Path), hidden=True)  # of an image's other layer
def build(
    names: tuple[str, ...],
    folder: Path,
    python: str,
    find_links: tuple[str, ...],
    index_url: str,
    rebuild: bool,
    server_packages: Path | None,
) -> None:
    """Build environments, by uv or else by pip."""
    from polyhost.environments.build import Options, definition_named
    from polyhost.environments.build import build as run

    options = Options(
        folder=folder.absolute(),
        packages=server_packages,
        python=python,
        find_links=find_links,
        index_url=index_url,
        rebuild=rebuild,
    )
    for definition, text in [definition_named(name) for name in names]:
        run(definition, text, options, lambda words: click.echo(words, err=True))


@env.command("list")
@_folder
def list_environments(folder: Path) -> None:
    """Print the environments that are built, and those that can be."""
    from polyhost.environments.inventory import inventory

    for entry in inventory(folder):
        click.echo(f"{entry.name:18}{entry.state:16}{entry.about}")


@env.command()
@click.argument("names", nargs=-1, metavar="[NAME…]")
@_folder
def check(names: tuple[str, ...], folder: Path) -> None:
    """
    Compare environments with their definitions.

    Each is started, and imports what its workers import. Without a NAME, all that are built are checked.
    """
    from polyhost.environments.inventory import built, faults_of

    wrong = 0
    for name in names or built(folder):
        faults = faults_of(folder, name)
        wrong += bool(faults)
        click.echo(f"{name}: {'; '.join(faults) or 'good'}")
    if wrong:
        raise EnvironmentFailed(f"{wrong} environments are not as their definitions say: build them with --rebuild.")


@env.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@_folder
def remove(names: tuple[str, ...], folder: Path) -> None:
    """Remove environments. Restart servers that have workers in one."""
    from polyhost_handlers.environments.definitions import canonical

    from polyhost.environments.inventory import built

    there = built(folder)
    for name in map(canonical, names):
        if name not in there:
            raise EnvironmentFailed(f"{folder} has no environment '{name}': it has {', '.join(there) or 'none'}.")
        shutil.rmtree(folder / name)
        click.echo(f"{name} is removed", err=True)


if __name__ == "__main__":
    env()
