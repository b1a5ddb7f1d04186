"""`polyhost key`: API keys for those who call without an AWS client (docs/api-keys.md)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from polyhost.errors import InvalidSetting


@click.group()
def key() -> None:
    """
    Make API keys, for calls without signatures.

    Clients send a key as `Authorization: Bearer KEY`.
    """


@key.command()
@click.argument("user", default="")
@click.option(
    "--auth-file",
    envvar="POLYHOST_AUTH_FILE",
    show_envvar=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE",
    help="Write the key's hash into this file.",
)
def new(user: str, auth_file: Path | None) -> None:
    """
    Print a new API key, for USER of the auth file if one is named.

    The key is printed once. The file gets its hash, and a running server knows it a second later.
    """
    from polyhost.endpoint.access.api_keys import hash_of, new_key

    made = new_key()
    if user:
        if auth_file is None:
            raise InvalidSetting(f"The key for {user} needs --auth-file: the file in which the user is.")
        _add(auth_file, user, hash_of(made))
        words = f"{auth_file} has its hash: the key is {user}'s. It is not shown again."
    else:
        words = f'Write its hash into the auth file, into "api_keys" of a user: "{hash_of(made)}"'
    sys.stderr.write(words + "\n")
    click.echo(made)


def _add(auth_file: Path, user: str, hashed: str) -> None:
    from polyhost.endpoint.access.auth_file import read_users, write_document

    file = auth_file.resolve()
    write_document(file, with_api_key(read_users(file), user, hashed))


def with_api_key(document: Mapping[str, Any], user: str, hashed: str) -> dict[str, Any]:
    """The auth file's content with one more key. Raises InvalidSetting if it has no such user."""
    names = [one["name"] for one in document["users"]]
    if user not in names:
        raise InvalidSetting(f"There is no user {user} in the auth file: it has {', '.join(names) or 'none'}.")
    users = [
        {**one, "api_keys": [*one.get("api_keys", []), hashed]} if one["name"] == user else one
        for one in document["users"]
    ]
    return {**document, "users": users}
