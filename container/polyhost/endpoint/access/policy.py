"""
IAM policies: read strictly, decided purely.

An operator, key, variable or field that is not known here is refused when the policy is read: a condition that was
passed over would allow what it was written to forbid.

What counts, as with IAM: an explicit Deny wins over every Allow, and what nothing allows is denied. Condition keys and
actions are compared without case, resources with it. A request without the key fails a condition, unless its operator
is negated or ends with IfExists.
"""

from __future__ import annotations

import enum
import fnmatch
import functools
import glob
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

KEYS = (
    "aws:PrincipalAccount",
    "aws:PrincipalArn",
    "aws:SecureTransport",
    "aws:userid",
    "aws:username",
    "polyhost:InputLocation",
    "sagemaker:TargetModel",
    "sagemaker:TargetVariant",
)
_KEYS = {key.lower() for key in KEYS}
_ACTION = re.compile(r"\*|[A-Za-z0-9-]+:[A-Za-z0-9*?]+")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
# `${*}` is a star, not a wildcard.
_ESCAPES = frozenset("*?$")
# Not those in a variable: `${aws:username}`.
_ARN_COLON = re.compile(r":(?![^{}]*\})")
_ARN_PARTS = 6

# What a request is decided by; keys are in lower case.
Context = Mapping[str, str]
# Whether a value is what the policy's text means in this request.
Matcher = Callable[[str, Context], bool]
OneOrMore = str | list[str]


class Verdict(enum.Enum):
    ALLOWED = enum.auto()
    DENIED = enum.auto()
    # Nothing applies.
    SILENT = enum.auto()


@dataclass(frozen=True, slots=True)
class Condition:
    """`matchers`: one for each value; `is_negated`: none of them may match, otherwise one must."""

    key: str
    matchers: tuple[Matcher, ...]
    is_negated: bool
    without_key: bool

    def holds(self, context: Context) -> bool:
        value = context.get(self.key)
        if value is None:
            return self.without_key
        return self.is_negated != any(matches(value, context) for matches in self.matchers)


@dataclass(frozen=True, slots=True)
class IsAbsent:
    """The operator Null."""

    key: str
    wanted: frozenset[bool]

    def holds(self, context: Context) -> bool:
        return (self.key not in context) in self.wanted


@dataclass(frozen=True, slots=True)
class Rule:
    """A statement, ready to be asked. `except_` is what NotAction and NotResource make of the lists."""

    is_allow: bool
    actions: tuple[Matcher, ...]
    except_actions: bool
    resources: tuple[Matcher, ...]
    except_resources: bool
    conditions: tuple[Condition | IsAbsent, ...]
    variables: frozenset[str]

    def applies(self, action: str, resource: str, context: Context) -> bool:
        # A variable without a value matches nothing. In NotResource that would allow everything.
        if self.is_allow and not self.variables <= context.keys():
            return False
        return (
            self.except_actions != any(matches(action.lower(), context) for matches in self.actions)
            and self.except_resources != any(matches(resource, context) for matches in self.resources)
            and all(condition.holds(context) for condition in self.conditions)
        )


Rules = tuple[Rule, ...]


def decide(rules: Rules, action: str, resource: str, context: Context) -> Verdict:
    verdict = Verdict.SILENT
    for rule in rules:
        if rule.applies(action, resource, context):
            if not rule.is_allow:
                return Verdict.DENIED
            verdict = Verdict.ALLOWED
    return verdict


# As it is written


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename="pascal"):
    pass


class Statement(_Strict, frozen=True):
    effect: Literal["Allow", "Deny"]
    action: OneOrMore | UnsetType = UNSET
    not_action: OneOrMore | UnsetType = UNSET
    resource: OneOrMore | UnsetType = UNSET
    not_resource: OneOrMore | UnsetType = UNSET
    condition: dict[str, dict[str, str | bool | list[str | bool]]] = {}
    sid: str = ""

    def __post_init__(self) -> None:
        # What is not understood is refused here, where msgspec knows the place.
        self.rule()

    def rule(self) -> Rule:
        """Raises ValueError."""
        actions = _one_of("Action", self.action, self.not_action)
        resources = _one_of("Resource", self.resource, self.not_resource)
        return Rule(
            is_allow=self.effect == "Allow",
            actions=tuple(_action(text) for text in actions),
            except_actions=self.action is UNSET,
            resources=tuple(_resource(text) for text in resources),
            except_resources=self.resource is UNSET,
            conditions=tuple(
                _condition(operator, key, values)
                for operator, keys in self.condition.items()
                for key, values in keys.items()
            ),
            variables=_variables(self.texts()),
        )

    def texts(self) -> list[str]:
        """Where variables may stand."""
        conditions = [text for keys in self.condition.values() for values in keys.values() for text in _texts(values)]
        return [*_one_of("Resource", self.resource, self.not_resource), *conditions]


class Document(_Strict, frozen=True):
    statement: Statement | list[Statement]
    # IAM's own default.
    version: Literal["2012-10-17", "2008-10-17"] = "2008-10-17"
    id: str = ""

    def __post_init__(self) -> None:
        texts = [text for statement in self._statements() for text in statement.texts()]
        if self.version == "2008-10-17" and any("${" in text for text in texts):
            raise ValueError('variables such as ${aws:username} need "Version": "2012-10-17"')

    def rules(self) -> Rules:
        return tuple(statement.rule() for statement in self._statements())

    def _statements(self) -> list[Statement]:
        return self.statement if isinstance(self.statement, list) else [self.statement]


def parse_json(text: bytes | str) -> Any:
    """Raises ValueError, also where an object names a field twice: only one of the two would count."""
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("too many brackets in brackets") from None


@functools.lru_cache(maxsize=1024)
def read_policy(text: str) -> Rules:
    """Raises ValueError that says where and why."""
    return msgspec.convert(parse_json(text), Document).rules()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice}' is there twice in one object")
    return fields


def _one_of(name: str, plain: OneOrMore | UnsetType, negated: OneOrMore | UnsetType) -> list[str]:
    given = [values for values in (plain, negated) if not isinstance(values, UnsetType)]
    if len(given) != 1:
        raise ValueError(f"a statement needs {name} or Not{name}, and not both")
    texts = [given[0]] if isinstance(given[0], str) else given[0]
    if not texts:
        raise ValueError(f"{name} or Not{name} is an empty list")
    return texts


def _action(text: str) -> Matcher:
    if not _ACTION.fullmatch(text):
        raise ValueError(f"the action {text!r} is not of the form service:Name, such as sagemaker:InvokeEndpoint")
    return _like(text.lower())


def _resource(text: str) -> Matcher:
    try:
        return _arn_like(text)
    except ValueError:
        raise ValueError(
            f"the resource {text!r} is neither * nor an ARN of six parts, such as arn:aws:sagemaker:*:*:endpoint/*",
        ) from None


def _condition(operator: str, key: str, values: str | bool | list[str | bool]) -> Condition | IsAbsent:
    if key.lower() not in _KEYS:
        raise ValueError(f"the condition key {key!r} is not known here: there are {', '.join(KEYS)}")
    texts = _texts(values)
    if not texts:
        raise ValueError(f"{operator} gives no value for {key}")
    if operator == "Null":
        return IsAbsent(key.lower(), frozenset(_true_or_false(text) for text in texts))
    quantifier, _, unquantified = operator.rpartition(":")
    name = unquantified.removesuffix("IfExists")
    if name not in _OPERATORS or quantifier not in ("", "ForAnyValue", "ForAllValues"):
        raise ValueError(f"the operator {operator!r} is not known here: there are {', '.join(_OPERATORS)}, Null")
    matcher_of, is_negated = _OPERATORS[name]
    return Condition(
        key.lower(),
        tuple(matcher_of(text) for text in texts),
        is_negated,
        # Each key has one value or none. Without a value ForAllValues holds, and ForAnyValue does not.
        without_key=name != unquantified or {"ForAnyValue": False, "ForAllValues": True}.get(quantifier, is_negated),
    )


def _texts(values: str | bool | list[str | bool]) -> list[str]:
    several = values if isinstance(values, list) else [values]
    return [value if isinstance(value, str) else str(value).lower() for value in several]


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


# What a text means


def _matcher(text: str, meaning: Callable[[str], Callable[[str], bool]], *, is_pattern: bool = False) -> Matcher:
    if not _variables([text]):
        fixed = meaning(_filled(text, {}, is_pattern=is_pattern) or "")
        return lambda value, _context: fixed(value)
    return lambda value, context: (
        (filled := _filled(text, context, is_pattern=is_pattern)) is not None and meaning(filled)(value)
    )


def _equals(text: str) -> Matcher:
    return _matcher(text, lambda wanted: lambda value: value == wanted)


def _equals_without_case(text: str) -> Matcher:
    return _matcher(text, lambda wanted: lambda value: value.lower() == wanted.lower())


def _boolean(text: str) -> Matcher:
    wanted = "true" if _true_or_false(text) else "false"
    return lambda value, _context: value.lower() == wanted


def _like(text: str) -> Matcher:
    return _matcher(text, _glob, is_pattern=True)


def _arn_like(text: str) -> Matcher:
    """Part by part: a wildcard never reaches over a colon of the first five."""
    if text == "*":
        return lambda _value, _context: True
    parts = _ARN_COLON.split(text, _ARN_PARTS - 1)
    if len(parts) < _ARN_PARTS or parts[0] != "arn":
        raise ValueError(f"{text!r} is not an ARN of six parts, such as arn:aws:iam::123456789012:user/*")
    matchers = [_like(part) for part in parts]

    def matches(value: str, context: Context) -> bool:
        given = value.split(":", _ARN_PARTS - 1)
        return len(given) == _ARN_PARTS and all(
            part_matches(part, context) for part_matches, part in zip(matchers, given, strict=True)
        )

    return matches


_OPERATORS: dict[str, tuple[Callable[[str], Matcher], bool]] = {
    "StringEquals": (_equals, False),
    "StringNotEquals": (_equals, True),
    "StringEqualsIgnoreCase": (_equals_without_case, False),
    "StringNotEqualsIgnoreCase": (_equals_without_case, True),
    "StringLike": (_like, False),
    "StringNotLike": (_like, True),
    "ArnEquals": (_arn_like, False),
    "ArnNotEquals": (_arn_like, True),
    "ArnLike": (_arn_like, False),
    "ArnNotLike": (_arn_like, True),
    "Bool": (_boolean, False),
}


def _variables(texts: Iterable[str]) -> frozenset[str]:
    """Raises ValueError at one that is not known."""
    found = set()
    for text in texts:
        for name in _VARIABLE.findall(text):
            if name in _ESCAPES:
                continue
            if name.lower() not in _KEYS:
                raise ValueError(f"the variable ${{{name}}} is not known here: there are {', '.join(KEYS)}")
            found.add(name.lower())
        if "${" in _VARIABLE.sub("", text):
            raise ValueError(f"a variable in {text!r} has no end")
    return frozenset(found)


def _filled(text: str, context: Context, *, is_pattern: bool = False) -> str | None:
    """With its variables' values; None if one has none. In a pattern, what a variable brings is no wildcard."""
    filled = []
    for index, part in enumerate(_VARIABLE.split(text)):
        if index % 2 == 0:
            filled.append(part.replace("[", "[[]") if is_pattern else part)
            continue
        value = part if part in _ESCAPES else context.get(part.lower())
        if value is None:
            return None
        filled.append(glob.escape(value) if is_pattern else value)
    return "".join(filled)


@functools.lru_cache(maxsize=1024)
def _glob(pattern: str) -> Callable[[str], bool]:
    # fnmatch's expressions never go back over a star: a policy full of stars costs no more than another.
    match = re.compile(fnmatch.translate(pattern)).match
    return lambda value: match(value) is not None
