"""The file of principals, who a request comes from, and what they may."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from polyhost.endpoint.access import Access, Caller, Credentials
from polyhost.endpoint.access.signing_key import SigningKey
from polyhost.endpoint.access.tokens import Session, opened, seal
from polyhost.endpoint.arns import Arns
from polyhost.errors import InvalidSetting
from polyhost.service_errors import AccessDenied, NotAuthenticated, ValidationError
from support.principals import (
    ACCOUNT,
    ANNA,
    BERT,
    BOSTON_ONLY,
    ENDPOINT,
    INVOKE,
    METRICS_TOKEN,
    House,
    asked,
    caller,
    document,
    policy,
)
from support.signing import Wire, signed

ARNS = Arns(ACCOUNT, "us-east-1")
BOSTON = {"sagemaker:TargetModel": "boston/a.tar.gz"}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def keys_of(credentials: Credentials) -> dict[str, str]:
    return {
        "key": credentials.access_key_id,
        "secret": credentials.secret_access_key,
        "token": credentials.session_token,
    }


def session(house: House, who: dict[str, str] = BERT, role: str = BOSTON_ONLY, **more: Any) -> dict[str, str]:
    given = {"role_arn": role, "session_name": "tuesday", "duration_secs": 3600, "policy": None} | more
    return keys_of(house.access.assume_role(caller(house.access, who), **given))


def refused(access: Access, wire: Wire) -> str:
    with pytest.raises(NotAuthenticated) as caught:
        asked(access, wire)
    return caught.value.type


# Who asks


def test_a_user_is_known_by_the_key(house: House) -> None:
    """
    With what GetCallerIdentity tells of him.
    """
    anna = caller(house.access, ANNA)

    assert anna.arn == f"arn:aws:iam::{ACCOUNT}:user/anna"
    assert anna.account_id == house.access.account_id == ACCOUNT
    assert re.fullmatch("AIDA[A-Z2-7]{17}", anna.user_id)
    assert anna.user_id != caller(house.access, BERT).user_id


def test_a_long_term_key_comes_without_a_token(house: House) -> None:
    """
    A token that is not the key's own is refused.
    """
    assert refused(house.access, signed(**ANNA, token="x")) == "UnrecognizedClientException"
    assert refused(house.access, signed(**ANNA, token=session(house)["token"])) == "UnrecognizedClientException"


# May they


def test_refusals_are_in_awss_words(house: House) -> None:
    """
    Whether nothing allows it or something forbids it.
    """
    bert = caller(house.access, BERT)
    with pytest.raises(AccessDenied) as silent:
        house.access.authorize(bert, INVOKE, ENDPOINT, {})
    assert silent.value.message == (
        f"User: arn:aws:iam::{ACCOUNT}:user/bert is not authorized to perform: sagemaker:InvokeEndpoint on resource: "
        f"{ENDPOINT} because no identity-based policy allows the sagemaker:InvokeEndpoint action"
    )

    content = document()
    content["users"][1]["policies"] = [policy(), policy(Effect="Deny", Action=INVOKE)]
    house.write(json.dumps(content))
    house.wait_for_a_look()
    with pytest.raises(AccessDenied, match=r"with an explicit deny in an identity-based policy$"):
        house.access.authorize(caller(house.access, BERT), INVOKE, ENDPOINT, {})
    house.access.authorize(caller(house.access, BERT), "sagemaker:DescribeEndpoint", ENDPOINT, {})


def test_managed_policies_have_their_meaning(house: House) -> None:
    """
    Full access to SageMaker is none to what is Polyhost's own.
    """
    anna = caller(house.access, ANNA)
    house.access.authorize(anna, "sagemaker:CreateModel", ARNS.arn("sagemaker", "model/x"), {})
    with pytest.raises(AccessDenied):
        house.access.authorize(anna, "polyhost:RegisterModel", ARNS.arn("polyhost", "loaded-model/x"), {})


def test_a_callers_own_keys_are_not_the_requests_to_give(tmp_path: Path) -> None:
    """
    The name, the ARN and whether the way is safe are known here.
    """
    content = document()
    condition = {
        "StringEquals": {"aws:username": "anna"},
        "ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/anna"},
        "Bool": {"aws:SecureTransport": "false"},
    }
    for user in content["users"]:
        user["policies"] = [policy(Condition=condition)]
    access = House(tmp_path, content).access
    lies = {"AWS:username": "anna", "aws:PrincipalArn": f"arn:aws:iam::{ACCOUNT}:user/anna"}

    access.authorize(caller(access, ANNA), INVOKE, ENDPOINT, {"aws:securetransport": "true"})
    with pytest.raises(AccessDenied):
        access.authorize(caller(access, BERT), INVOKE, ENDPOINT, lies)
    over_tls = Access.read(tmp_path / "principals.json", secret_folder=tmp_path / "state", is_tls=True)
    with pytest.raises(AccessDenied):
        over_tls.authorize(caller(over_tls, ANNA), INVOKE, ENDPOINT, {})


# Sessions


def test_a_session_has_its_roles_rights_and_no_others(house: House) -> None:
    """
    Anna's own do not come with her into the role.
    """
    anna = caller(house.access, session(house, ANNA))

    assert anna.arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/boston-only/tuesday"
    assert re.fullmatch("AROA[A-Z2-7]{17}:tuesday", anna.user_id)
    house.access.authorize(anna, INVOKE, ENDPOINT, BOSTON)
    with pytest.raises(AccessDenied, match=f"^User: {anna.arn} is not authorized"):
        house.access.authorize(anna, INVOKE, ENDPOINT, {"sagemaker:TargetModel": "houston/a.tar.gz"})
    with pytest.raises(AccessDenied):
        house.access.authorize(anna, INVOKE, ENDPOINT, {})


def test_a_sessions_policy_narrows_it(house: House) -> None:
    """
    What both allow is allowed; a Deny in it is one.
    """
    only_a = json.dumps(policy(Condition={"StringLike": {"sagemaker:TargetModel": ["boston/a*", "houston/*"]}}))
    none = json.dumps(policy(Effect="Deny"))

    narrowed = caller(house.access, session(house, policy=only_a))
    house.access.authorize(narrowed, INVOKE, ENDPOINT, BOSTON)
    with pytest.raises(AccessDenied, match=r"because no session policy allows the sagemaker:InvokeEndpoint action$"):
        house.access.authorize(narrowed, INVOKE, ENDPOINT, {"sagemaker:TargetModel": "boston/b"})
    with pytest.raises(AccessDenied, match="because no identity-based policy allows"):
        house.access.authorize(narrowed, INVOKE, ENDPOINT, {"sagemaker:TargetModel": "houston/b"})
    with pytest.raises(AccessDenied, match=r"with an explicit deny in a session policy$"):
        house.access.authorize(caller(house.access, session(house, policy=none)), INVOKE, ENDPOINT, BOSTON)


@pytest.mark.parametrize("text", ["", "{}", "[", json.dumps(policy(Effect="allow")), json.dumps(policy()).ljust(2049)])
def test_a_sessions_policy_is_read_as_strictly(house: House, text: str) -> None:
    """
    Nothing is passed over, and the error has STS's name.
    """
    with pytest.raises(ValidationError) as caught:
        session(house, policy=text)
    assert caught.value.type == "MalformedPolicyDocument"


def test_who_may_assume_a_role(house: House) -> None:
    """
    Those on its list. A role that there is not is refused in the same words.
    """
    assert session(house, BERT)
    for role in (f"arn:aws:iam::{ACCOUNT}:role/annas", f"arn:aws:iam::{ACCOUNT}:role/nobodys", "nonsense"):
        with pytest.raises(AccessDenied, match=r"user/bert is not authorized to perform: sts:AssumeRole on .*does not"):
            session(house, BERT, role)

    # A session counts as its role, no more as the user who began it.
    chained = caller(house.access, session(house, session(house), f"arn:aws:iam::{ACCOUNT}:role/next"))
    assert chained.arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/next/tuesday"
    with pytest.raises(AccessDenied):
        session(house, session(house, ANNA), f"arn:aws:iam::{ACCOUNT}:role/annas")


def test_a_star_trusts_everybody_in_the_file(tmp_path: Path) -> None:
    """
    Also those without a policy.
    """
    content = document()
    content["roles"][0]["may_be_assumed_by"] = ["*"]

    assert session(House(tmp_path, content), BERT)


@pytest.mark.parametrize("path", ["/service-role/", "/a/b/"])
def test_a_role_has_its_path_in_its_arn_alone(house: House, path: str) -> None:
    """
    As in IAM: not in the session's ARN, and without it there is no such role.
    """
    arn = BOSTON_ONLY.replace("role/", f"role{path}")
    content = json.loads(json.dumps(document()).replace(BOSTON_ONLY, arn))
    next(role for role in content["roles"] if role["name"] == "boston-only")["path"] = path
    house.write(json.dumps(content))
    house.wait_for_a_look()

    keys = session(house, role=arn)
    assert caller(house.access, keys).arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/boston-only/tuesday"
    assert caller(house.access, keys).keys["aws:principalarn"] == arn
    with pytest.raises(AccessDenied, match="there is no such role"):
        session(house)


def test_a_policy_may_forbid_what_a_role_allows(tmp_path: Path) -> None:
    """
    And a session that was narrowed gets no wider by a role.
    """
    content = document()
    content["users"][1]["policies"] = [policy(Effect="Deny", Action="sts:*")]
    house = House(tmp_path, content)

    with pytest.raises(AccessDenied, match=r"with an explicit deny in an identity-based policy$"):
        session(house, BERT)
    narrow = session(house, ANNA, policy=json.dumps(policy(Action=INVOKE)))
    with pytest.raises(AccessDenied, match=r"because no session policy allows the sts:AssumeRole action$"):
        session(house, narrow, f"arn:aws:iam::{ACCOUNT}:role/next")
    wide = session(house, ANNA, policy=json.dumps(policy(Action=["sts:AssumeRole"])))
    assert session(house, wide, f"arn:aws:iam::{ACCOUNT}:role/next")


def test_a_session_ends(house: House) -> None:
    """
    At its time, in AWS's words; a fresh signature does not help it.
    """
    anna = caller(house.access, ANNA)
    house.clock.ahead_secs = -900
    keys = keys_of(house.access.assume_role(anna, BOSTON_ONLY, "tuesday", 900, None))
    house.clock.ahead_secs = -60
    assert caller(house.access, keys)
    house.clock.ahead_secs = 60

    with pytest.raises(NotAuthenticated, match=r"^The security token included in the request is expired$") as caught:
        caller(house.access, keys)
    assert caught.value.type == "ExpiredTokenException"


def test_a_session_is_no_longer_than_it_may_be(house: House) -> None:
    """
    The role says how long.
    """
    assert session(house, duration_secs=7200)
    with pytest.raises(ValidationError, match="exceeds the MaxSessionDuration set for this role: 7200 seconds"):
        session(house, duration_secs=7201)
    with pytest.raises(ValidationError, match="at least 900"):
        session(house, duration_secs=899)


@pytest.mark.parametrize("name", ["", "a", "a b", "a/b", "a\n", "ä" * 2, "a" * 65])
def test_a_sessions_name_is_part_of_an_arn(house: House, name: str) -> None:
    """
    So it has AWS's letters only.
    """
    with pytest.raises(ValidationError, match="RoleSessionName must have 2 to 64"):
        session(house, session_name=name)


def test_a_sessions_three_parts_belong_together(house: House) -> None:
    """
    No key without its token, no token with another's key.
    """
    one, other = session(house), session(house, session_name="wednesday")

    assert one["key"].startswith("ASIA")
    assert refused(house.access, signed(**{**one, "token": None})) == "UnrecognizedClientException"
    assert refused(house.access, signed(**{**one, "token": other["token"]})) == "UnrecognizedClientException"
    assert refused(house.access, signed(**{**one, "secret": other["secret"]})) == "InvalidSignatureException"
    assert refused(house.access, signed(**{**ANNA, "token": one["token"]})) == "UnrecognizedClientException"


@pytest.fixture(scope="module")
def lasting_house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@given(token=st.text(max_size=40), data=st.data())
def test_a_token_that_was_changed_is_refused(lasting_house: House, token: str, data: st.DataObject) -> None:
    """
    One byte of it, or all.
    """
    keys = session(lasting_house)
    place = data.draw(st.integers(0, len(keys["token"]) - 1))
    letter = data.draw(st.sampled_from("aAzZ09-_=\xe9").filter(lambda letter: letter != keys["token"][place]))
    changed = keys["token"][:place] + letter + keys["token"][place + 1 :]
    wire = signed(**keys)

    for other in (changed, token):
        assert refused(lasting_house.access, wire.with_header("x-amz-security-token", other)) == (
            "UnrecognizedClientException"
        )


def test_only_a_token_that_is_ours_is_opened() -> None:
    """
    Even with no signature to fail after it: not one of another's, nor padded, nor endless.
    """
    sealed = Session("arn", "tuesday", ANNA["key"], 0, "")
    token = seal(b"k" * 32, sealed)

    key, others = b"k" * 32, b"l" * 32
    assert opened((key,), token).session == sealed
    assert opened((others, key), token) == opened((key,), token)
    assert opened((key,), token).secret_access_key not in repr(opened((key,), token))
    longest = seal(b"k" * 32, sealed._replace(policy="a" * 8192))
    for keys, other in (((others,), token), ((), token), ((key,), token + "\n"), ((key,), ""), ((key,), longest)):
        with pytest.raises(ValueError, match=r".+"):
            opened(keys, other)


def test_sessions_outlive_a_restart_but_not_their_key(house: House) -> None:
    """
    The key is the server's alone; without it, or with another, a token is nothing.
    """
    keys = session(house)
    [key_file] = (house.folder / "state").iterdir()

    assert caller(house.read(), keys).arn.endswith("boston-only/tuesday")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key_file.unlink()
    assert refused(house.read(), signed(**keys)) == "UnrecognizedClientException"


def test_a_key_file_that_is_none_is_refused(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """
    One that others may read is a warning.
    """
    [key_file] = (house.folder / "state").iterdir()
    key_file.chmod(0o640)
    house.read()
    assert f"{key_file} may be read by others: chmod 600" in caplog.text

    key_file.write_bytes(b"short")
    with pytest.raises(InvalidSetting, match="is not a key of 32 bytes: remove it"):
        house.read()
    with pytest.raises(InvalidSetting, match="Not a directory"):
        Access.read(house.file, secret_folder=house.file / "state")


def test_a_session_follows_the_file(house: House) -> None:
    """
    Its role's policies hold as they are now; without the role, or the user's key, it is over.
    """
    keys = session(house, ANNA)
    content = document()
    content["roles"][0]["policies"] = []
    house.write(json.dumps(content))
    house.wait_for_a_look()
    with pytest.raises(AccessDenied):
        house.access.authorize(caller(house.access, keys), INVOKE, ENDPOINT, BOSTON)

    for part, index in (("users", 0), ("roles", 0)):
        content = document()
        content["roles"][0]["may_be_assumed_by"] = content["roles"][1]["may_be_assumed_by"] = ["*"]
        content["roles"][2]["may_be_assumed_by"] = []
        content[part].pop(index)
        house.write(json.dumps(content))
        house.wait_for_a_look()
        assert refused(house.access, signed(**keys)) == "UnrecognizedClientException"


# The file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"account_id": 123456789012}, "Expected `str`, got `int` - at `$.account_id`"),
        ({"account_id": "12"}, "at `$.account_id`"),
        ({"user": []}, "unknown field `user`"),
        ({"metrics_token": "short"}, "length >= 16 - at `$.metrics_token`"),
        ({"users[0]": {"name": "a/b"}}, "at `$.users[0].name`"),
        ({"users[0]": {"name": "bert"}}, "users[1].name is also that of users[0]"),
        ({"users[1]": {"access_key_id": ANNA["key"]}}, "users[1].access_key_id is also that of users[0]"),
        ({"users[1]": {"access_key_id": "ASIAANNA000000000000"}}, "at `$.users[1].access_key_id`"),
        ({"users[1]": {"secret_access_key": "secret"}}, "length >= 20 - at `$.users[1].secret_access_key`"),
        ({"users[0]": {"policies": ["arn:aws:iam::aws:policy/x"]}}, "the policy 'arn:aws:iam::aws:policy/x' is not"),
        ({"users[0]": {"polices": []}}, "unknown field `polices` - at `$.users[0]`"),
        ({"users[0]": {"policies": [policy(Effect="No")]}}, "at `$.users[0].policies[0].Statement[0].Effect`"),
        ({"roles[0]": {"policies": ["x"]}}, "AmazonSageMakerFullAccess - at `$.roles[0]`"),
        ({"roles[0]": {"may_be_assumed_by": ["ann"]}}, "roles[0].may_be_assumed_by: 'ann' is neither a user's name"),
        ({"roles[0]": {"may_be_assumed_by": "anna"}}, "at `$.roles[0].may_be_assumed_by`"),
        ({"roles[0]": {"max_session_secs": 60}}, "at `$.roles[0].max_session_secs`"),
        ({"roles[0]": {"name": "ANNAS"}}, "roles[1].name is also that of roles[0]"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_with_its_place(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """
    And no secret is.
    """
    content = document()
    for name, value in change.items():
        part, _, index = name.partition("[")
        if index:
            content[part][int(index[:-1])].update(value)
        else:
            content[part] = value
    with pytest.raises(InvalidSetting) as caught:
        House(tmp_path, content)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'principals.json'}: ")
    assert ANNA["secret"] not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value: line 1 column 1"),
        ("[]", "Expected `object`, got `array`"),
        ('{"users": [],\n "users": []}', "'users' is there twice in one object"),
        ("\xe9", "utf-8"),
    ],
)
def test_a_file_that_is_no_json_is_refused(house: House, text: str, words: str) -> None:
    """
    Also one that is not there.
    """
    house.file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidSetting) as caught:
        house.read()
    assert words in str(caught.value)
    house.file.unlink()
    with pytest.raises(InvalidSetting, match=r"principals\.json: No such file or directory"):
        house.read()


def test_a_change_of_the_file_is_in_force_a_second_later(house: House) -> None:
    """
    The file is looked at once a second, not with each request.
    """
    content = document()
    content["users"][0]["secret_access_key"] = BERT["secret"]
    house.write(json.dumps(content))

    assert caller(house.access, ANNA)
    house.wait_for_a_look()
    assert refused(house.access, signed(**ANNA)) == "InvalidSignatureException"
    assert caller(house.access, {**ANNA, "secret": BERT["secret"]})


def test_a_broken_file_leaves_the_one_before_in_force(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """
    The log says once what is wrong and where, and when it is right again.
    """
    caplog.set_level(logging.INFO)
    content = document()
    content["users"][0]["polices"] = []
    for broken in (json.dumps(content), "{", json.dumps(document() | {"account_id": "999999999999", "roles": []})):
        caplog.clear()
        house.write(broken)
        for _ in range(3):
            house.wait_for_a_look()
            assert caller(house.access, ANNA)
        [record] = caplog.records
        assert record.levelname == "ERROR"
        assert record.getMessage().startswith(f"{house.file}: ")
        assert record.getMessage().endswith("What was read before stays in force.")
    caplog.clear()
    house.file.unlink()
    house.wait_for_a_look()
    assert caller(house.access, ANNA)
    assert "No such file" in caplog.text

    caplog.clear()
    content = document()
    del content["users"][1]
    content["roles"] = []
    house.write(json.dumps(content))
    house.wait_for_a_look()
    assert refused(house.access, signed(**BERT)) == "UnrecognizedClientException"
    assert caplog.messages == [f"{house.file} has changed and is in force: 2 users, 0 roles"]


def test_a_clock_that_is_put_back_does_not_stop_the_looking(house: House) -> None:
    """
    An hour back is not an hour's wait.
    """
    house.write(json.dumps(document() | {"metrics_token": "another-one-for-prometheus"}))
    house.clock.ahead_secs = -3600

    assert house.access.is_metrics_token("Bearer another-one-for-prometheus")


def test_a_file_open_to_all_is_a_warning(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """
    Not an error: secrets that an orchestrator mounts often are.
    """
    house.read()
    assert not caplog.records
    house.file.chmod(0o644)
    house.read()
    assert f"{house.file} holds secrets and is open to every user of this machine" in caplog.text


def test_secrets_are_in_no_repr(house: House) -> None:
    """
    Of nothing that is handed around or kept.
    """
    credentials = house.access.assume_role(caller(house.access, ANNA), BOSTON_ONLY, "tuesday", 900, None)
    principals = house.access._file.principals
    shown = repr([house.access, principals, credentials, principals.users, principals.roles])

    for secret in (ANNA["secret"], METRICS_TOKEN, credentials.secret_access_key, credentials.session_token):
        assert secret not in shown
    assert repr(house.access) == f"<Access {house.file} [3 users, 3 roles]>"


def test_the_token_for_metrics(house: House, tmp_path: Path) -> None:
    """
    A bearer's; a file without one has none that fits.
    """
    assert house.access.is_metrics_token(f"Bearer {METRICS_TOKEN}")
    assert house.access.is_metrics_token(f"bearer {METRICS_TOKEN}")
    for wrong in ("", "Bearer", "Bearer ", "Bearer x", METRICS_TOKEN, f"Basic {METRICS_TOKEN}", "Bearer \xe9"):
        assert not house.access.is_metrics_token(wrong)

    content = document()
    del content["metrics_token"]
    house.write(json.dumps(content))
    house.wait_for_a_look()
    assert not house.access.is_metrics_token("Bearer ")


def test_the_docs_example_does_what_it_says(tmp_path: Path) -> None:
    """
    The file in docs/security.md is read, and its role is what the text tells.
    """
    text = (ROOT / "docs" / "security.md").read_text()
    [example] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    house = House(tmp_path, json.loads(example))
    keys = {
        user["name"]: {"key": user["access_key_id"], "secret": user["secret_access_key"]}
        for user in json.loads(example)["users"]
    }
    bert: Caller = caller(house.access, keys["bert"])

    house.access.authorize(caller(house.access, keys["anna"]), "polyhost:RegisterModel", "arn:aws:polyhost:a:1:b", {})
    with pytest.raises(AccessDenied) as caught:
        house.access.authorize(bert, INVOKE, ENDPOINT, BOSTON)
    assert caught.value.message in text.replace("\n", " ")
    boston = caller(house.access, session(house, keys["bert"]))
    house.access.authorize(boston, INVOKE, ENDPOINT, BOSTON)
    for context in ({}, {"sagemaker:TargetModel": "houston/a.tar.gz"}):
        with pytest.raises(AccessDenied):
            house.access.authorize(boston, INVOKE, ENDPOINT, context)


def test_a_key_that_an_operator_gives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Servers with one take each other's sessions; one that is too short, or not there, is refused."""
    house, file = House(tmp_path), tmp_path / "token.key"

    def read(folder: str) -> Access:
        return Access.read(house.file, secret_folder=tmp_path / folder, token_key_file=file)

    with pytest.raises(InvalidSetting, match=r"cannot be read \(No such file or directory\): session tokens"):
        read("one")
    file.write_bytes(b"short" * 6)
    with pytest.raises(InvalidSetting, match=r"--token-key-file: .* has 30 bytes, at least 32 are needed"):
        read("one")
    file.write_text("0f" * 32 + "\n")
    file.chmod(0o644)
    keys = keys_of(read("one").assume_role(caller(house.access, ANNA), BOSTON_ONLY, "tests", 900, None))
    assert caller(read("two"), keys).arn.endswith(":assumed-role/boston-only/tests")
    with pytest.raises(NotAuthenticated):
        caller(house.access, keys)
    assert "is open to every user of this machine: chmod o-rwx" in caplog.text
    assert not (tmp_path / "one").exists()


@pytest.fixture
def keyed_house(tmp_path: Path) -> House:
    """With a key of the operator's, in the file `key`."""
    write_key(tmp_path / "key", "01" * 32)
    return House(tmp_path, token_key_file=tmp_path / "key")


def write_key(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o600)


def test_a_new_key_ends_no_session_and_no_login(keyed_house: House) -> None:
    access, file = keyed_house.access, keyed_house.folder / "key"
    before, (_, login) = session(keyed_house), access.log_in(ANNA["key"], ANNA["secret"])

    write_key(file, "02" * 32)
    access.look()

    assert caller(access, before).arn.endswith("boston-only/tuesday")
    assert access.logged_in(login).arn.endswith("user/anna")
    assert caller(keyed_house.read(), session(keyed_house)).arn.endswith("boston-only/tuesday")
    for end in (lambda: caller(keyed_house.read(), before), lambda: keyed_house.read().logged_in(login)):
        with pytest.raises(NotAuthenticated):  # by a server that was started with the new one alone
            end()


def test_the_key_before_is_accepted_for_as_long_as_sessions_last(tmp_path: Path) -> None:
    """A session has twelve hours at most. Of several keys, only the one just before the newest is accepted."""
    file, clock = tmp_path / "key", [1000.0]
    seen = []

    def changed(text: str, later_secs: float = 0.0) -> None:
        write_key(file, text * 32)
        clock[0] += later_secs
        key.look()
        seen.append([accepted[:2].decode() for accepted in key.accepted])

    write_key(file, "01" * 32)
    key = SigningKey.read(file, tmp_path / "state", lambda: clock[0])
    changed("02")
    changed("02", later_secs=43_199)  # the same file again prolongs nothing
    changed("02", later_secs=1)
    changed("03")
    changed("04")

    assert seen == [["02", "01"], ["02", "01"], ["02"], ["03", "02"], ["04", "03"]]


@pytest.mark.parametrize("break_it", [lambda file: write_key(file, "short"), os.unlink], ids=["short", "gone"])
def test_a_broken_key_leaves_the_one_that_was_read(
    keyed_house: House, caplog: pytest.LogCaptureFixture, break_it: Callable[[Path], None]
) -> None:
    keys = session(keyed_house)
    break_it(keyed_house.folder / "key")
    keyed_house.access.look()

    assert caller(keyed_house.access, keys).arn.endswith("boston-only/tuesday")
    assert caller(keyed_house.access, session(keyed_house)).arn.endswith("boston-only/tuesday")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "The key that was read before stays in force." in caplog.text
