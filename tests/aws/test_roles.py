"""`polyhost add-role`: from moto's IAM into the file of who may call what."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from polyhost.errors import InvalidSetting
from polyhost_aws.roles import check_role, trusted_by, with_role
from support.principals import BERT, BOSTON_ONLY, ENDPOINT, INVOKE, House, caller, policy

from aws.conftest import ACCOUNT, Cloud

ANNA_ARN = f"arn:aws:iam::{ACCOUNT}:user/anna"
STRANGER = f"arn:aws:iam::{ACCOUNT}:user/zoe"
ONLY_NEW_YORK = policy(
    Action=INVOKE, Resource=ENDPOINT, Condition={"StringLike": {"sagemaker:TargetModel": ["NewYork_NY/*"]}}
)


def trust(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def allow(principal: Any, **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole", **more}


# Decisions


@pytest.mark.parametrize(
    ("statements", "known", "strangers"),
    [
        ([allow({"AWS": ANNA_ARN})], [ANNA_ARN], []),
        ([allow({"AWS": [ANNA_ARN, BOSTON_ONLY, STRANGER]})], [ANNA_ARN, BOSTON_ONLY], [STRANGER]),
        ([allow({"AWS": ANNA_ARN}), allow({"AWS": [BOSTON_ONLY, ANNA_ARN]})], [ANNA_ARN, BOSTON_ONLY], []),
        # The account and everybody are more than the file's users: who is meant must be said.
        ([allow({"AWS": f"arn:aws:iam::{ACCOUNT}:root"})], [], [f"arn:aws:iam::{ACCOUNT}:root"]),
        ([allow("*")], [], ["*"]),
        ([allow({"Service": "sagemaker.amazonaws.com"})], [], []),
        ([allow({"AWS": ANNA_ARN}, Action=["sts:TagSession"])], [], []),
        ([allow({"AWS": ANNA_ARN}, Action=["sts:TagSession", "STS:AssumeRole"], Sid="one")], [ANNA_ARN], []),
    ],
)
def test_whom_a_trust_policy_names(statements: list[Any], known: list[str], strangers: list[str]) -> None:
    role = {"RoleName": "r", "AssumeRolePolicyDocument": trust(*statements)}

    assert trusted_by(role, frozenset((ANNA_ARN, BOSTON_ONLY))) == (known, strangers)


@pytest.mark.parametrize(
    "statement",
    [
        allow({"AWS": ANNA_ARN}, Effect="Deny"),
        allow({"AWS": ANNA_ARN}, Condition={"Bool": {"aws:MultiFactorAuthPresent": "true"}}),
        {"Effect": "Allow", "NotPrincipal": {"AWS": ANNA_ARN}, "Action": "sts:AssumeRole"},
    ],
)
def test_a_trust_policy_that_says_more_is_refused(statement: dict[str, Any]) -> None:
    role = {"RoleName": "r", "AssumeRolePolicyDocument": trust(allow({"AWS": ANNA_ARN}), statement)}

    with pytest.raises(InvalidSetting, match="say with --assumed-by who may assume it here"):
        trusted_by(role, frozenset([ANNA_ARN]))


def test_a_role_that_would_be_another_here_is_refused() -> None:
    role = {"RoleName": "r", "Arn": f"arn:aws:iam::{ACCOUNT}:role/r"}

    check_role(role, ACCOUNT)
    with pytest.raises(InvalidSetting, match=f"of the account {ACCOUNT}, the auth file of 999999999999"):
        check_role(role, "999999999999")
    with pytest.raises(InvalidSetting, match="has a permissions boundary"):
        check_role({**role, "PermissionsBoundary": {"PermissionsBoundaryArn": "arn"}}, ACCOUNT)


def test_a_role_takes_the_place_of_the_one_that_had_its_name() -> None:
    before = {"users": [], "roles": [{"name": "a", "old": 1}, {"name": "b"}]}

    assert with_role(before, {"name": "a", "new": 1})["roles"] == [{"name": "a", "new": 1}, {"name": "b"}]
    assert with_role(before, {"name": "c"})["roles"] == [{"name": "a", "old": 1}, {"name": "b"}, {"name": "c"}]
    assert with_role({"users": []}, {"name": "c"}) == {"users": [], "roles": [{"name": "c"}]}


# From IAM into the file


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def make_role(cloud: Cloud, *principals: str) -> None:
    """As the published notebook does, and a policy of the role's own."""
    iam = cloud.client("iam")
    document = json.dumps(trust(allow({"AWS": list(principals)})))
    iam.create_role(RoleName="new-york", AssumeRolePolicyDocument=document, MaxSessionDuration=7200)
    arn = iam.create_policy(PolicyName="new-york", PolicyDocument=json.dumps(ONLY_NEW_YORK))["Policy"]["Arn"]
    iam.attach_role_policy(PolicyArn=arn, RoleName="new-york")


def assume(house: House, role: str = "new-york") -> None:
    arn = f"arn:aws:iam::{ACCOUNT}:role/{role}"
    house.access.assume_role(caller(house.access, BERT), arn, "tuesday", 3600, None)


def test_a_role_comes_with_its_policies(cloud: Cloud, house: House) -> None:
    """And may be assumed at once, though the file is looked at once a second only."""
    bert = f"arn:aws:iam::{ACCOUNT}:user/bert"
    make_role(cloud, bert, STRANGER)
    inline = json.dumps(policy(Action="sagemaker:ListEndpoints"))
    cloud.client("iam").put_role_policy(RoleName="new-york", PolicyName="more", PolicyDocument=inline)
    caller(house.access, BERT)  # the file has been looked at just now

    done = cloud.shell.run("add-role", "new-york", "--auth-file", str(house.file))

    assert done.out == f"arn:aws:iam::{ACCOUNT}:role/new-york may be assumed by {bert}\n"
    assert f"{STRANGER} may not assume the role here: principals.json does not know it." in done.said
    *_, entry = json.loads(house.file.read_text())["roles"]
    assert entry == {
        "name": "new-york",
        "path": "/",
        "may_be_assumed_by": [bert],
        "max_session_secs": 7200,
        "policies": [policy(Action="sagemaker:ListEndpoints"), ONLY_NEW_YORK],
    }
    assert stat.S_IMODE(house.file.stat().st_mode) == 0o600
    assume(house)


def test_the_same_command_again_brings_what_has_changed(cloud: Cloud, house: House) -> None:
    make_role(cloud, ANNA_ARN)
    command = ("add-role", "new-york", "--auth-file", str(house.file))
    cloud.shell.run(*command)
    iam = cloud.client("iam")
    (attached,) = iam.list_attached_role_policies(RoleName="new-york")["AttachedPolicies"]
    iam.detach_role_policy(RoleName="new-york", PolicyArn=attached["PolicyArn"])

    cloud.shell.run(*command, "--assumed-by", "bert")

    roles = [role for role in json.loads(house.file.read_text())["roles"] if role["name"] == "new-york"]
    assert [(role["may_be_assumed_by"], role["policies"]) for role in roles] == [(["bert"], [])]


@pytest.mark.parametrize(
    ("principals", "document", "arguments", "words"),
    [
        ([STRANGER], ONLY_NEW_YORK, [], f"names nobody whom principals.json knows, only {STRANGER}. Say with"),
        ([ANNA_ARN], policy(Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}), [], "aws:SourceIp"),
        ([ANNA_ARN], ONLY_NEW_YORK, ["--assumed-by", "zoe"], "'zoe' is neither a user's name"),
    ],
)
def test_what_the_file_cannot_say_leaves_it_as_it_was(
    cloud: Cloud, house: House, principals: list[str], document: Any, arguments: list[str], words: str
) -> None:
    make_role(cloud, *principals)
    cloud.client("iam").put_role_policy(RoleName="new-york", PolicyName="p", PolicyDocument=json.dumps(document))
    before = house.file.read_text()

    done = cloud.shell.try_("add-role", "new-york", "--auth-file", str(house.file), *arguments)

    assert (done.code, words in done.said) == (2, True), done.said
    assert house.file.read_text() == before
    assert [path.name for path in house.folder.iterdir() if path.is_file()] == ["principals.json"]


def test_a_role_that_is_not_there_is_said(cloud: Cloud, house: House) -> None:
    done = cloud.shell.try_("add-role", "nobody", "--auth-file", str(house.file))

    assert (done.code, "iam:GetRole: " in done.said) == (6, True)
