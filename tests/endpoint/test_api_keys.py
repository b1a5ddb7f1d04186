"""API keys: who brings one is its user, on every route on which a signature would do."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from polyhost.cli import cli
from polyhost.endpoint.access.api_keys import bearer_of, hash_of, id_of, new_key
from polyhost.endpoint.access.principals import read_principals
from polyhost.errors import InvalidSetting
from polyhost.key_command import with_api_key
from polyhost.service_errors import AccessDenied, NotAuthenticated
from support.principals import ACCOUNT, BOSTON_ONLY, CARLS_KEY, ENDPOINT, INVOKE, House, asked, caller, document
from support.signing import Wire, signed

OTHER_KEY = "phk_another-key-of-carls-0000000000000000000000"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def with_key(authorization: str) -> Wire:
    return Wire("POST", "/endpoints/polyhost/invocations", "", {"authorization": authorization}, b"1,2,3")


def bearer(key: str) -> Wire:
    return with_key(f"Bearer {key}")


def sha256(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize(
    ("authorization", "token"),
    [
        ("Bearer abc", "abc"), ("bearer abc", "abc"), ("BEARER abc", "abc"), ("Bearer   abc ", "abc"), ("Bearer", ""),
        ("Bearer ", ""), ("Bearer a b", "a b"), ("Basic abc", None), ("", None), ("Bearerabc", None), ("abc", None),
        ("AWS4-HMAC-SHA256 Credential=Bearer x", None),
    ],
)  # fmt: skip
def test_what_follows_bearer(authorization: str, token: str | None) -> None:
    assert bearer_of(authorization) == token


def test_keys_are_random_and_their_hashes_are_sha_256() -> None:
    one, other = new_key(), new_key()
    assert one != other
    assert len(one) >= 47  # 256 bits and the prefix
    assert hash_of(one) == sha256(one)
    assert id_of(hash_of(one)) != id_of(hash_of(other))


def test_who_brings_a_key_is_its_user(house: House) -> None:
    carl = asked(house.access, bearer(CARLS_KEY))
    assert carl.arn == f"arn:aws:iam::{ACCOUNT}:user/carl"
    assert carl.keys["aws:username"] == "carl"
    house.access.authorize(carl, INVOKE, ENDPOINT, {})
    with pytest.raises(AccessDenied, match="user/carl is not authorized to perform: polyhost:RegisterModel"):
        house.access.authorize(carl, "polyhost:RegisterModel", "*", {})


WRONG = [
    "Bearer", "Bearer ", f"Bearer {CARLS_KEY}x", f"Bearer {CARLS_KEY[:-1]}", f"Bearer {CARLS_KEY.upper()}",
    f"Bearer {sha256(CARLS_KEY)}", f"Bearer {id_of(sha256(CARLS_KEY))}", "Bearer for-prometheus-alone",
    "Bearer \xe9\xff",
    "Bearer " + "x" * 60_000,
]  # fmt: skip


@pytest.mark.parametrize("authorization", WRONG)
def test_any_other_key_is_answered_as_an_unknown_access_key(house: House, authorization: str) -> None:
    """Its hash, which others may have read, is none."""
    with pytest.raises(NotAuthenticated) as unknown:
        asked(house.access, signed(key="AKIANOBODY0000000000", secret="x" * 40))
    with pytest.raises(NotAuthenticated) as caught:
        asked(house.access, with_key(authorization))
    assert (caught.value.status, caught.value.type) == (403, "UnrecognizedClientException")
    assert (caught.value.type, caught.value.message) == (unknown.value.type, unknown.value.message)


@pytest.mark.parametrize("key_id", [sha256(CARLS_KEY), id_of(sha256(CARLS_KEY))])
def test_nobody_signs_with_a_hash(house: House, key_id: str) -> None:
    """The file has it, and a backup of the file may be read by more people than the file."""
    with pytest.raises(NotAuthenticated):
        asked(house.access, signed(key=key_id, secret=sha256(CARLS_KEY)))


@pytest.mark.parametrize("key_id", [sha256(CARLS_KEY), id_of(sha256(CARLS_KEY)), "AKIABERT000000000000"])
def test_nobody_logs_in_with_a_hash(house: House, key_id: str) -> None:
    for secret in (sha256(CARLS_KEY), CARLS_KEY):
        with pytest.raises(NotAuthenticated):
            house.access.log_in(key_id, secret)
    with pytest.raises(NotAuthenticated):
        house.access.log_in("", sha256(CARLS_KEY))


def test_an_api_key_does_not_open_metrics(house: House) -> None:
    assert not house.access.is_metrics_token(f"Bearer {CARLS_KEY}")
    assert house.access.is_metrics_token("Bearer for-prometheus-alone")


def change_keys(house: House, *keys: str) -> None:
    content = document()
    content["users"][2]["api_keys"] = [sha256(key) for key in keys]
    house.write(json.dumps(content))
    house.wait_for_a_look()


def test_a_key_is_replaced_without_a_gap(house: House) -> None:
    """A user has both for a while; the old one is refused a second after it has left the file."""
    change_keys(house, CARLS_KEY, OTHER_KEY)
    first, second = asked(house.access, bearer(CARLS_KEY)), asked(house.access, bearer(OTHER_KEY))
    assert first.arn == second.arn
    change_keys(house, OTHER_KEY)
    with pytest.raises(NotAuthenticated):
        asked(house.access, bearer(CARLS_KEY))
    assert asked(house.access, bearer(OTHER_KEY)).arn == first.arn


def test_a_roles_session_ends_with_the_api_key_that_it_began_with(house: House) -> None:
    carl = asked(house.access, bearer(CARLS_KEY))
    given = house.access.assume_role(carl, BOSTON_ONLY, "tuesday", 3600, None)
    session = {"key": given.access_key_id, "secret": given.secret_access_key, "token": given.session_token}
    assert caller(house.access, session).arn.endswith("assumed-role/boston-only/tuesday")
    change_keys(house, OTHER_KEY)
    with pytest.raises(NotAuthenticated):
        caller(house.access, session)


def test_a_login_ends_with_the_api_key_that_it_began_with(house: House) -> None:
    carl, token = house.access.log_in("", CARLS_KEY)
    assert carl.arn.endswith("user/carl")
    assert house.access.logged_in(token) is carl
    assert CARLS_KEY not in token
    change_keys(house, OTHER_KEY)
    with pytest.raises(NotAuthenticated):
        house.access.logged_in(token)


def test_no_key_is_written_anywhere(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(NotAuthenticated) as caught:
        asked(house.access, bearer(OTHER_KEY))
    carl = asked(house.access, bearer(CARLS_KEY))
    told = repr((carl, house.access, read_principals(house.file.read_bytes()))) + str(caught.value) + caplog.text
    for secret in (CARLS_KEY, OTHER_KEY, sha256(CARLS_KEY)[7:]):
        assert secret not in told


@pytest.mark.parametrize(
    ("user", "fault"),
    [
        ({"name": "dora"}, "the user has no key"),
        ({"name": "dora", "api_keys": []}, "the user has no key"),
        ({"name": "dora", "access_key_id": "AKIADORA000000000000"}, "go together"),
        ({"name": "dora", "secret_access_key": "x" * 40, "api_keys": [sha256("a")]}, "go together"),
        ({"name": "dora", "api_keys": [CARLS_KEY]}, "api_keys"),
        ({"name": "dora", "api_keys": [sha256("a").upper()]}, "api_keys"),
        ({"name": "dora", "api_keys": [sha256("a") + "\n"]}, "api_keys"),
        ({"name": "dora", "api_keys": "sha256"}, "api_keys"),
        ({"name": "dora", "api_keys": [sha256(CARLS_KEY)]}, r"users\[3\].api_keys has a key of users\[2\].api_keys"),
        ({"name": "dora", "api_keys": [sha256("a"), sha256("a")]}, r"users\[3\].api_keys has a key of users\[3\]"),
    ],
)
def test_a_file_that_says_it_wrongly_is_refused(house: House, user: dict[str, Any], fault: str) -> None:
    """In words that have no key in them."""
    content = document()
    content["users"].append(user)
    house.write(json.dumps(content))
    with pytest.raises(InvalidSetting, match=fault) as caught:
        house.read()
    assert CARLS_KEY not in str(caught.value)


# The command


def test_the_command_puts_a_keys_hash_into_the_file(house: House) -> None:
    result = CliRunner().invoke(cli, ["key", "new", "bert", "--auth-file", str(house.file)])
    assert result.exit_code == 0
    key = result.stdout.strip()
    assert key not in house.file.read_text()
    assert key not in result.stderr
    assert house.file.stat().st_mode & 0o777 == 0o600
    assert asked(house.read(), bearer(key)).arn.endswith("user/bert")
    assert asked(house.read(), bearer(CARLS_KEY)).arn.endswith("user/carl")


def test_the_command_gives_a_user_the_first_key(house: House) -> None:
    """Until then the file is none that a server would take."""
    content = document()
    content["users"].append({"name": "dora", "policies": []})
    house.write(json.dumps(content))

    result = CliRunner().invoke(cli, ["key", "new", "dora", "--auth-file", str(house.file)])
    assert result.exit_code == 0
    assert asked(house.read(), bearer(result.stdout.strip())).arn.endswith("user/dora")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"users": 5}', '{"users": [{}]}', "[" * 100_000, "😀"])
def test_a_file_that_is_none_is_said_by_the_commands(house: House, content: str) -> None:
    house.write(content)
    for command in (["key", "new", "bert"], ["add-role", "one"]):
        result = CliRunner().invoke(cli, [*command, "--auth-file", str(house.file)])
        assert isinstance(result.exception, InvalidSetting)
        assert str(house.file) in str(result.exception)
    assert house.file.read_text() == content


def test_the_command_prints_a_key_and_its_hash() -> None:
    result = CliRunner().invoke(cli, ["key", "new"])
    assert hash_of(result.stdout.strip()) in result.stderr


def test_the_command_names_what_is_missing(house: House) -> None:
    before = house.file.read_bytes()
    with pytest.raises(InvalidSetting, match="There is no user dora in the auth file: it has anna, bert, carl"):
        with_api_key(document(), "dora", sha256("a"))
    unknown = CliRunner().invoke(cli, ["key", "new", "dora", "--auth-file", str(house.file)])
    assert isinstance(unknown.exception, InvalidSetting)
    nowhere = CliRunner(env={"POLYHOST_AUTH_FILE": ""}).invoke(cli, ["key", "new", "anna"])
    assert isinstance(nowhere.exception, InvalidSetting)
    assert "needs --auth-file" in str(nowhere.exception)
    assert house.file.read_bytes() == before
