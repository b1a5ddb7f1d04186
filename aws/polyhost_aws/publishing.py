"""`polyhost models list`, `add` and `remove`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from polyhost.errors import DeployFailed, InvalidSetting
from polyhost_handlers.errors import LoadFailed

from polyhost_aws.models import AlreadyThere, Place, check_name, digest_of, place_of
from polyhost_aws.packing import kind_in, pack
from polyhost_aws.progress import Progress, in_words, progress


def list_models(models: str, region: str, *, as_json: bool) -> None:
    """A line at a time: a prefix may hold very many."""
    archives = place_of(models, region).archives()
    if not as_json:
        for archive in archives:
            click.echo(f"{archive.size_bytes:>12}  {archive.modified:%Y-%m-%d %H:%M}  {archive.name}")
        return
    separator = "["
    for archive in archives:
        row = {"name": archive.name, "size": archive.size_bytes, "modified": f"{archive.modified:%Y-%m-%dT%H:%M:%SZ}"}
        click.echo(f"{separator}{json.dumps(row)}", nl=False)
        separator = ",\n "
    click.echo("[]" if separator == "[" else "]")


@dataclass(frozen=True)
class _New:
    path: Path
    name: str


def add_models(paths: Sequence[str], models: str, region: str, *, name: str, overwrite: bool) -> None:
    """All are looked at before the first is uploaded; one that is there already, and the same, is no error."""
    new = [_New(Path(path), name or _name_of(Path(path))) for path in paths]
    _check(new, name)
    place, said = place_of(models, region), progress()
    with tempfile.TemporaryDirectory(prefix="polyhost-") as temp:
        ready = [_prepared(item, Path(temp, f"{number}.tar.gz"), said) for number, item in enumerate(new)]
        wanted = [item for item in ready if _is_wanted(item, place, said, overwrite=overwrite)]
        for item in wanted:
            _add(item, place, said, overwrite=overwrite)


def _name_of(path: Path) -> str:
    return f"{path.resolve().name}.tar.gz" if path.is_dir() else path.name


def _check(new: Sequence[_New], name: str) -> None:
    if name and len(new) > 1:
        raise InvalidSetting("--name is for a single PATH.")
    if len({item.name for item in new}) < len(new):
        raise InvalidSetting("Two of these would have the same name: add them one by one, with --name.")
    for item in new:
        check_name(item.name)


@dataclass(frozen=True)
class _Ready:
    file: Path
    name: str
    digest: str


def _prepared(item: _New, temp: Path, said: Progress) -> _Ready:
    """Packed, if it is a folder. Raises ArchiveRefused."""
    try:
        kind = kind_in(item.path)
        said.say(f"{item.path}: {kind}")
    except LoadFailed as error:
        said.say(f"{item.path}: WARNING: only a handler of your own will load this. {error}")
    file = item.path
    if item.path.is_dir():
        pack(item.path, temp)
        file = temp
    return _Ready(file, item.name, digest_of(file))


def _is_wanted(item: _Ready, place: Place, said: Progress, *, overwrite: bool) -> bool:
    there = place.digest_of(item.name)
    if there == item.digest:
        said.say(f"{place.url_of(item.name)} is there already, and the same")
        return False
    if there is not None and not overwrite:
        raise AlreadyThere(
            f"{place.url_of(item.name)} is there already, with another content: nothing was added. --overwrite "
            "replaces it; on SageMaker rather take a new name, because instances keep what they have loaded."
        )
    return True


def _add(item: _Ready, place: Place, said: Progress, *, overwrite: bool) -> None:
    url = place.url_of(item.name)
    with said.transfer(url) as show:
        place.add(item.file, item.name, item.digest, show, overwrite=overwrite)
    said.say(f"{url} added ({in_words(item.file.stat().st_size)})")


def remove_models(names: Sequence[str], models: str, region: str, *, is_sure: bool) -> None:
    place = place_of(models, region)
    for name in names:
        check_name(name)
        if place.digest_of(name) is None:
            raise DeployFailed(
                f"{place.url_of(name)} is not there: nothing was removed. polyhost models list shows all."
            )
    if not is_sure:
        click.confirm(f"Remove {', '.join(place.url_of(name) for name in names)}?", abort=True, err=True)
    said = progress()
    for name in names:
        place.remove(name)
        said.say(f"{place.url_of(name)} removed")
