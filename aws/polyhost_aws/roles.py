"""
A role as IAM has it, brought into the file of who may call what (docs/security.md).

Polyhost has no IAM: its file is the only place where a role may come from. So what a notebook has made in IAM, or in a
server that stands in its place, is copied into the file by a command. What the file cannot say is refused, never left
out: a role must not be able to do more here than it may there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyhost.endpoint.access.auth_file import read_document, write_document
from polyhost.endpoint.access.principals import MANAGED, Principals
from polyhost.errors import InvalidSetting

from polyhost_aws.session import Aws

_ASSUME = ("sts:assumerole", "sts:*", "*")


def add_role(name: str, auth_file: str, assumed_by: Sequence[str], region: str) -> None:
    """Raises InvalidSetting, CallFailed. The file is as it was, then."""
    file = Path(auth_file).resolve()
    document, principals = read_document(file)
    aws = Aws(region, needs_region=False)
    role = aws.call("iam", "GetRole", {"RoleName": name})["Role"]
    check_role(role, principals.account_id)
    trusted, strangers = (list(assumed_by), []) if assumed_by else trusted_by(role, _known(principals))
    if not trusted:
        raise InvalidSetting(
            f"The role {name} would be of no use: its trust policy names nobody whom {file.name} knows"
            f"{f', only {_listed(strangers)}' if strangers else ''}. Say with --assumed-by who may assume it here."
        )
    entry = {
        "name": name,
        "path": role.get("Path", "/"),
        "may_be_assumed_by": trusted,
        "max_session_secs": role.get("MaxSessionDuration", 3600),
        "policies": _policies(aws, name),
    }
    write_document(file, with_role(document, entry))
    for stranger in strangers:
        sys.stderr.write(f"{stranger} may not assume the role here: {file.name} does not know it.\n")
    sys.stdout.write(f"{role['Arn']} may be assumed by {_listed(trusted)}\n")


# Decisions


def check_role(role: Mapping[str, Any], account_id: str) -> None:
    """Raises InvalidSetting if it cannot be the same role here."""
    name, account = role["RoleName"], role["Arn"].split(":")[4]
    if account != account_id:
        raise InvalidSetting(
            f"The role {name} is of the account {account}, the auth file of {account_id}: the policies of one mean "
            "nothing in the other. Set account_id in the file."
        )
    if "PermissionsBoundary" in role:
        raise InvalidSetting(
            f"The role {name} has a permissions boundary, which the auth file cannot have: write the role there by "
            "hand, with policies that allow no more than both do."
        )


def trusted_by(role: Mapping[str, Any], known: frozenset[str]) -> tuple[list[str], list[str]]:
    """
    The ARNs that a trust policy lets assume the role: those in `known`, and all others. AWS's services are in neither.

    Raises InvalidSetting if the policy says more than a list of ARNs can.
    """
    statements = role["AssumeRolePolicyDocument"]["Statement"]
    trusted: dict[str, None] = {}
    for statement in statements if isinstance(statements, list) else [statements]:
        is_plain = statement["Effect"] == "Allow" and statement.keys() <= {"Sid", "Effect", "Action", "Principal"}
        if not is_plain:
            raise InvalidSetting(
                f"The trust policy of the role {role['RoleName']} has a Deny, a Condition or a Not…, which the auth "
                "file cannot have: say with --assumed-by who may assume it here."
            )
        if any(action.lower() in _ASSUME for action in _several(statement["Action"])):
            principal = statement["Principal"]
            trusted |= dict.fromkeys(_several(principal if principal == "*" else principal.get("AWS", [])))
    return [arn for arn in trusted if arn in known], [arn for arn in trusted if arn not in known]


def with_role(document: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The file's content with the role, in the place of the one that had its name."""
    roles = {role["name"]: role for role in document.get("roles", [])}
    return {**document, "roles": [*(roles | {entry["name"]: entry}).values()]}


def _known(principals: Principals) -> frozenset[str]:
    return frozenset((*principals.user_arns, *principals.roles))


def _several(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


# IAM


def _policies(aws: Aws, role: str) -> list[Any]:
    """The policies in the role and those attached to it, in the form of the auth file."""
    named = {"RoleName": role}
    policies: list[Any] = [
        aws.call("iam", "GetRolePolicy", {**named, "PolicyName": name})["PolicyDocument"]
        for name in aws.pages("iam", "ListRolePolicies", "PolicyNames", **named)
    ]
    for attached in aws.pages("iam", "ListAttachedRolePolicies", "AttachedPolicies", **named):
        arn = attached["PolicyArn"]
        policies.append(arn if arn in MANAGED else _document(aws, arn))
    return policies


def _document(aws: Aws, arn: str) -> Any:
    version = aws.call("iam", "GetPolicy", {"PolicyArn": arn})["Policy"]["DefaultVersionId"]
    found = aws.call("iam", "GetPolicyVersion", {"PolicyArn": arn, "VersionId": version})
    return found["PolicyVersion"]["Document"]
