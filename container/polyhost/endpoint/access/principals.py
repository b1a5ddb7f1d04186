"""
The file of principals, read strictly: users with their keys, roles and who may assume them, policies.

Secrets are in no `repr` and in no error.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from polyhost.config import LEAST_PER_SEC, MOST_PER_SEC
from polyhost.endpoint.access.api_keys import HASH_PATTERN, id_of
from polyhost.endpoint.access.policy import Document, Rules, parse_json
from polyhost.http_limits import Rate

_NAME = r"\A[A-Za-z0-9_+=,.@-]{1,64}\Z"
_ALL = '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": %s, "Resource": "*"}}'
# AWS's managed policies that have a meaning here.
MANAGED = {
    "arn:aws:iam::aws:policy/AdministratorAccess": _ALL % '"*"',
    # Of what it allows at AWS, the services that are here.
    "arn:aws:iam::aws:policy/AmazonSageMakerFullAccess": _ALL
    % '["sagemaker:*", "cloudwatch:GetMetricData", "cloudwatch:GetMetricStatistics", "cloudwatch:ListMetrics",'
    ' "application-autoscaling:*"]',
}

Name = Annotated[str, Meta(pattern=_NAME)]
Policies = list[str | Document]


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """
    Who a request comes from; another one whenever the file of principals has changed.

    `rules` are its policies' statements, `session_rules` those that its session was narrowed to, `keys` the condition
    keys that are its own. `access_key_id` is the user's key that all began with; of an API key, its id. `rate`: how
    often it may call; None where the file does not say.
    """

    arn: str
    account_id: str
    user_id: str
    access_key_id: str
    rules: Rules = field(repr=False)
    session_rules: Rules | None = field(repr=False)
    keys: Mapping[str, str] = field(repr=False)
    rate: Rate | None

    @property
    def principal_arn(self) -> str:
        """The user's own, or that of the role behind the session."""
        return self.keys["aws:principalarn"]


@dataclass(frozen=True, slots=True)
class User:
    """By one key. `secret`: of an access key, or the hash of an API key."""

    secret: str = field(repr=False)
    caller: Caller


@dataclass(frozen=True, slots=True, eq=False)
class Role:
    """
    Another one whenever the file of principals has changed.

    `trusted` are the ARNs of those who may assume it; None is everybody in the file.
    """

    name: str
    arn: str
    id: str
    trusted: frozenset[str] | None
    rules: Rules = field(repr=False)
    max_session_secs: int
    rate: Rate | None

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
            rate=self.rate,
        )


@dataclass(frozen=True, slots=True)
class Principals:
    """
    `users` by their access key's id, `roles` by their ARN.

    `api_keys`: users by the ids of their API keys. They are kept apart: nobody may sign with a hash that he has read.
    """

    account_id: str
    metrics_token: str = field(repr=False)
    users: Mapping[str, User]
    api_keys: Mapping[str, User]
    roles: Mapping[str, Role]

    @property
    def user_arns(self) -> frozenset[str]:
        return frozenset(user.caller.arn for user in (*self.users.values(), *self.api_keys.values()))

    def by_key(self, key_id: str) -> User | None:
        """The user of a key of any kind, which was checked before."""
        return self.users.get(key_id) or self.api_keys.get(key_id)


def read_principals(text: bytes) -> Principals:
    """Raises ValueError that says where and why."""
    return msgspec.convert(parse_json(text), _File).principals()


# As it is written


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class _Rate(_Strict, frozen=True):
    requests_per_sec: Annotated[float, Meta(ge=LEAST_PER_SEC, le=MOST_PER_SEC)]
    burst: Annotated[int, Meta(ge=1, le=MOST_PER_SEC)] | None = None

    def rate(self) -> Rate:
        return Rate(self.requests_per_sec, self.burst or max(1, math.ceil(self.requests_per_sec)))


class _User(_Strict, frozen=True):
    name: Name
    # Ids that begin with ASIA belong to sessions.
    access_key_id: Annotated[str, Meta(pattern=r"\A(?!ASIA)[A-Za-z0-9]{4,128}\Z")] | None = None
    # A shorter one could be guessed from one signature that was seen.
    secret_access_key: Annotated[str, Meta(min_length=20, max_length=128)] | None = None
    api_keys: list[Annotated[str, Meta(pattern=HASH_PATTERN)]] = []
    policies: Policies = []
    rate_limit: _Rate | None = None

    def __post_init__(self) -> None:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key go together: write both, or none")
        if self.access_key_id is None and not self.api_keys:
            raise ValueError("the user has no key: write access_key_id and secret_access_key, or api_keys")
        _rules(self.policies)

    def keys(self, account_id: str) -> Mapping[str, User]:
        """The user, by the ids of its access key and its API keys."""
        secrets = {id_of(hashed): hashed for hashed in self.api_keys}
        if self.access_key_id is not None and self.secret_access_key is not None:
            secrets[self.access_key_id] = self.secret_access_key
        return {key_id: User(secret, self._caller(account_id, key_id)) for key_id, secret in secrets.items()}

    def _caller(self, account_id: str, key_id: str) -> Caller:
        arn = _user_arn(account_id, self.name)
        user_id = _unique_id("AIDA", arn)
        return Caller(
            arn=arn,
            account_id=account_id,
            user_id=user_id,
            access_key_id=key_id,
            rules=_rules(self.policies),
            session_rules=None,
            keys=_keys(account_id, arn, user_id) | {"aws:username": self.name},
            rate=self.rate_limit.rate() if self.rate_limit else None,
        )


class _Role(_Strict, frozen=True):
    name: Name
    may_be_assumed_by: list[str]
    # As IAM has it: between two slashes, in the ARN alone.
    path: Annotated[str, Meta(pattern=r"\A/([!-~]{0,510}/)?\Z")] = "/"
    policies: Policies = []
    # Within AWS's limits.
    max_session_secs: Annotated[int, Meta(ge=3600, le=43200)] = 3600
    rate_limit: _Rate | None = None

    def __post_init__(self) -> None:
        _rules(self.policies)

    def arn(self, account_id: str) -> str:
        return f"arn:aws:iam::{account_id}:role{self.path}{self.name}"

    def role(self, account_id: str, arns: Mapping[str, str]) -> Role:
        arn = self.arn(account_id)
        return Role(
            name=self.name,
            arn=arn,
            id=_unique_id("AROA", arn),
            trusted=None if "*" in self.may_be_assumed_by else frozenset(arns[name] for name in self.may_be_assumed_by),
            rules=_rules(self.policies),
            max_session_secs=self.max_session_secs,
            rate=self.rate_limit.rate() if self.rate_limit else None,
        )


class _File(_Strict, frozen=True):
    account_id: Annotated[str, Meta(pattern=r"\A[0-9]{12}\Z")]
    users: list[_User]
    roles: list[_Role] = []
    metrics_token: Annotated[str, Meta(min_length=16)] | None = None

    def __post_init__(self) -> None:
        _refuse_twins("users", "name", (user.name.lower() for user in self.users))
        _refuse_twins("users", "access_key_id", (user.access_key_id for user in self.users))
        _refuse_shared_api_keys(self.users)
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
        keys = {key_id: user for one in self.users for key_id, user in one.keys(self.account_id).items()}
        access_key_ids = {user.access_key_id for user in self.users}
        roles = [role.role(self.account_id, self._arns()) for role in self.roles]
        return Principals(
            self.account_id,
            self.metrics_token or "",
            users={key_id: user for key_id, user in keys.items() if key_id in access_key_ids},
            api_keys={key_id: user for key_id, user in keys.items() if key_id not in access_key_ids},
            roles={role.arn: role for role in roles},
        )

    def _arns(self) -> dict[str, str]:
        """What a principal may be called in `may_be_assumed_by`, and the ARN that it is."""
        users = {user.name: _user_arn(self.account_id, user.name) for user in self.users}
        arns = [*users.values(), *(role.arn(self.account_id) for role in self.roles)]
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


def _refuse_twins(list_name: str, field_name: str, values: Iterable[str | None]) -> None:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value is None:
            continue
        if value in first:
            raise ValueError(f"{list_name}[{index}].{field_name} is also that of {list_name}[{first[value]}]")
        first[value] = index


def _refuse_shared_api_keys(users: Sequence[_User]) -> None:
    """Two keys with one id would be one. By chance that never happens."""
    first: dict[str, int] = {}
    for index, user in enumerate(users):
        for hashed in user.api_keys:
            key_id = id_of(hashed)
            if key_id in first:
                raise ValueError(f"users[{index}].api_keys has a key of users[{first[key_id]}].api_keys again")
            first[key_id] = index


def _user_arn(account_id: str, name: str) -> str:
    return f"arn:aws:iam::{account_id}:user/{name}"


def _unique_id(prefix: str, arn: str) -> str:
    """An id in AWS's form, always the same for the same ARN."""
    return prefix + base64.b32encode(hashlib.sha256(arn.encode()).digest())[:17].decode()


def _keys(account_id: str, arn: str, user_id: str) -> dict[str, str]:
    return {"aws:principalaccount": account_id, "aws:principalarn": arn, "aws:userid": user_id}
