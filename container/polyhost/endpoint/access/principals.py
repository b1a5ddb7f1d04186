"""
The file of principals, read strictly: users with their keys, roles and who may assume them, policies.

Secrets are in no `repr` and in no error.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from polyhost.endpoint.access.policy import Document, Rules, parse_json

_NAME = r"\A[A-Za-z0-9_+=,.@-]{1,64}\Z"
_ALL = '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "%s", "Resource": "*"}}'
# AWS's managed policies that have a meaning here.
MANAGED = {
    "arn:aws:iam::aws:policy/AdministratorAccess": _ALL % "*",
    "arn:aws:iam::aws:policy/AmazonSageMakerFullAccess": _ALL % "sagemaker:*",
}

Name = Annotated[str, Meta(pattern=_NAME)]
Policies = list[str | Document]


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Who a request comes from.

    `rules` are its policies' statements, `session_rules` those that its session was narrowed to, `keys` the condition
    keys that are its own. `access_key_id` is the user's key that all began with.
    """

    arn: str
    account_id: str
    user_id: str
    access_key_id: str
    rules: Rules = field(repr=False)
    session_rules: Rules | None = field(repr=False)
    keys: Mapping[str, str] = field(repr=False)

    @property
    def principal_arn(self) -> str:
        """The user's own, or that of the role behind the session."""
        return self.keys["aws:principalarn"]


@dataclass(frozen=True, slots=True)
class User:
    secret_access_key: str = field(repr=False)
    caller: Caller


@dataclass(frozen=True, slots=True)
class Role:
    """`trusted` are the ARNs of those who may assume it; None is everybody in the file."""

    name: str
    arn: str
    id: str
    trusted: frozenset[str] | None
    rules: Rules = field(repr=False)
    max_session_secs: int

    def trusts(self, caller: Caller) -> bool:
        return self.trusted is None or caller.principal_arn in self.trusted

    def session(self, account_id: str, name: str, access_key_id: str, session_rules: Rules | None) -> Caller:
        return Caller(
            arn=f"arn:aws:sts::{account_id}:assumed-role/{self.name}/{name}",
            account_id=account_id,
            user_id=f"{self.id}:{name}",
            access_key_id=access_key_id,
            rules=self.rules,
            session_rules=session_rules,
            keys=_keys(account_id, self.arn, f"{self.id}:{name}"),
        )


@dataclass(frozen=True, slots=True)
class Principals:
    """`users` by their access key's id, `roles` by their ARN."""

    account_id: str
    metrics_token: str = field(repr=False)
    users: Mapping[str, User]
    roles: Mapping[str, Role]


def read_principals(text: bytes) -> Principals:
    """Raises ValueError that says where and why."""
    return msgspec.convert(parse_json(text), _File).principals()


# As it is written


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class _User(_Strict, frozen=True):
    name: Name
    # Those that begin with ASIA are sessions'.
    access_key_id: Annotated[str, Meta(pattern=r"\A(?!ASIA)[A-Za-z0-9]{4,128}\Z")]
    # A shorter one could be guessed from one signature that was seen.
    secret_access_key: Annotated[str, Meta(min_length=20, max_length=128)]
    policies: Policies = []

    def __post_init__(self) -> None:
        _rules(self.policies)

    def user(self, account_id: str) -> User:
        arn = _user_arn(account_id, self.name)
        user_id = _unique_id("AIDA", arn)
        return User(
            self.secret_access_key,
            Caller(
                arn=arn,
                account_id=account_id,
                user_id=user_id,
                access_key_id=self.access_key_id,
                rules=_rules(self.policies),
                session_rules=None,
                keys=_keys(account_id, arn, user_id) | {"aws:username": self.name},
            ),
        )


class _Role(_Strict, frozen=True):
    name: Name
    may_be_assumed_by: list[str]
    policies: Policies = []
    # Within AWS's limits.
    max_session_secs: Annotated[int, Meta(ge=3600, le=43200)] = 3600

    def __post_init__(self) -> None:
        _rules(self.policies)

    def role(self, account_id: str, arns: Mapping[str, str]) -> Role:
        arn = _role_arn(account_id, self.name)
        return Role(
            name=self.name,
            arn=arn,
            id=_unique_id("AROA", arn),
            trusted=None if "*" in self.may_be_assumed_by else frozenset(arns[name] for name in self.may_be_assumed_by),
            rules=_rules(self.policies),
            max_session_secs=self.max_session_secs,
        )


class _File(_Strict, frozen=True):
    account_id: Annotated[str, Meta(pattern=r"\A[0-9]{12}\Z")]
    users: list[_User]
    roles: list[_Role] = []
    metrics_token: Annotated[str, Meta(min_length=16)] | None = None

    def __post_init__(self) -> None:
        _refuse_twins("users", "name", (user.name.lower() for user in self.users))
        _refuse_twins("users", "access_key_id", (user.access_key_id for user in self.users))
        _refuse_twins("roles", "name", (role.name.lower() for role in self.roles))
        arns = self._arns()
        for index, role in enumerate(self.roles):
            for name in role.may_be_assumed_by:
                if name != "*" and name not in arns:
                    raise ValueError(
                        f"roles[{index}].may_be_assumed_by: {name!r} is neither a user's name, nor the ARN of a user "
                        "or role in this file, nor *",
                    )

    def principals(self) -> Principals:
        users = {user.access_key_id: user.user(self.account_id) for user in self.users}
        roles = [role.role(self.account_id, self._arns()) for role in self.roles]
        return Principals(self.account_id, self.metrics_token or "", users, {role.arn: role for role in roles})

    def _arns(self) -> dict[str, str]:
        """What a principal may be called in `may_be_assumed_by`, and the ARN that it is."""
        users = {user.name: _user_arn(self.account_id, user.name) for user in self.users}
        arns = [*users.values(), *(_role_arn(self.account_id, role.name) for role in self.roles)]
        return users | {arn: arn for arn in arns}


def _rules(policies: Policies) -> Rules:
    """Raises ValueError."""
    return tuple(rule for policy in policies for rule in _document(policy).rules())


def _document(policy: str | Document) -> Document:
    if isinstance(policy, Document):
        return policy
    if policy not in MANAGED:
        raise ValueError(
            f"the policy {policy!r} is not known here: write the policy itself, or one of {', '.join(MANAGED)}",
        )
    return msgspec.convert(parse_json(MANAGED[policy]), Document)


def _refuse_twins(list_name: str, field_name: str, values: Iterable[str]) -> None:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in first:
            raise ValueError(f"{list_name}[{index}].{field_name} is also that of {list_name}[{first[value]}]")
        first[value] = index


def _user_arn(account_id: str, name: str) -> str:
    return f"arn:aws:iam::{account_id}:user/{name}"


def _role_arn(account_id: str, name: str) -> str:
    return f"arn:aws:iam::{account_id}:role/{name}"


def _unique_id(prefix: str, arn: str) -> str:
    """Of the form that AWS gives a principal, always the same for the same ARN."""
    return prefix + base64.b32encode(hashlib.sha256(arn.encode()).digest())[:17].decode()


def _keys(account_id: str, arn: str, user_id: str) -> dict[str, str]:
    return {"aws:principalaccount": account_id, "aws:principalarn": arn, "aws:userid": user_id}
