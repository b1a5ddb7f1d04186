"""
A file of settings, TOML: the options of `polyhost serve` without their hyphens, in the tables of its groups or outside.

    memory-budget = "4GiB"

    [endpoint]
    models = "s3://my-bucket/models/"
    preload = ["houston.tar.gz", "boston.tar.gz"]
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from polyhost.errors import InvalidSetting

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - of Python 3.10
    import tomli as tomllib

# All settings with their help take a tenth of it.
_MOST_BYTES = 256 * 1024
_MOST_BITS = 64

InFile: TypeAlias = dict[str, tuple[str, tuple[str, ...]]]


def read_settings(file: Path, tables: Mapping[str, Sequence[str]]) -> InFile:
    """
    By name: where the setting stands, for errors, and its values as they would be written on the command line.

    `tables`: the names of each. Raises InvalidSetting, also for a name that no table has.
    """
    found: InFile = {}
    for name, value in _entries(file, _document(file), tables):
        if name in found:
            raise InvalidSetting(f"{file}: {name} is there twice, in a table and outside. Remove one of them.")
        found[name] = f"{file}: {name}", _texts(file, name, value)
    return found


def _document(file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = tomllib.loads(_text_of(file))
    except OSError as error:
        raise InvalidSetting(f"--config: {file} cannot be read ({os.strerror(error.errno or 0)}).") from error
    except (ValueError, RecursionError) as error:  # of TOML, or of UTF-8
        raise InvalidSetting(f"--config: {file} is not TOML: {error}.") from error
    return document


def _text_of(file: Path) -> str:
    """Raises OSError, ValueError."""
    with file.open("rb") as stream:
        content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    return content.decode()


def _entries(file: Path, document: Mapping[str, Any], tables: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Any]]:
    everywhere = [name for names in tables.values() for name in names]
    for name, value in document.items():
        if not isinstance(value, dict):
            yield _known(file, name, everywhere), value
        elif name not in tables:
            raise InvalidSetting(f"{file}: there is no table [{name}]{_nearest(name, list(tables))}")
        else:
            yield from ((_in_table(file, name, one, tables), inner) for one, inner in value.items())


def _known(file: Path, name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise InvalidSetting(f"{file}: there is no setting {name}{_nearest(name, names)}")
    return name


def _in_table(file: Path, table: str, name: str, tables: Mapping[str, Sequence[str]]) -> str:
    for other, names in tables.items():
        if name in names and other != table:
            raise InvalidSetting(f"{file}: {name} is not in the table [{table}] but in [{other}]. Move it there.")
    return _known(file, name, tables[table])


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.replace("_", "-").lower(), names, n=1)
    return f": did you mean {near[0]}?" if near else f". There are {', '.join(sorted(names))}."


def _texts(file: Path, name: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(file, name, one) for one in (value if isinstance(value, list) else [value]))


def _text(file: Path, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    # Python writes no number of thousands of digits.
    if isinstance(value, str | float) or (isinstance(value, int) and value.bit_length() <= _MOST_BITS):
        return str(value)
    raise InvalidSetting(f"{file}: {name}: write a text, a number, true, false, or a list of these.")
