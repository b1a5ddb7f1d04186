"""IAM policies: what they allow, and what is refused when they are read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from polyhost.endpoint.access.policy import _OPERATORS, KEYS, Verdict, decide, read_policy
from support.principals import ENDPOINT, INVOKE, policy

ALLOWED, DENIED, SILENT = Verdict.ALLOWED, Verdict.DENIED, Verdict.SILENT
MODEL = "sagemaker:TargetModel"


def verdict(
    *policies: dict[str, Any],
    action: str = INVOKE,
    resource: str = ENDPOINT,
    context: Mapping[str, str] | None = None,
) -> Verdict:
    rules = tuple(rule for one in policies for rule in read_policy(json.dumps(one)))
    return decide(rules, action, resource, {key.lower(): value for key, value in (context or {}).items()})


def holds(condition: dict[str, Any], context: Mapping[str, str]) -> bool:
    return verdict(policy(Condition=condition), context=context) is ALLOWED


def test_nothing_is_allowed_by_default_and_a_deny_wins() -> None:
    """Wherever the Deny stands."""
    allow, deny = policy(), policy(Effect="Deny")

    assert verdict() is SILENT
    assert verdict(allow) is ALLOWED
    assert verdict(allow, deny) is DENIED
    assert verdict(deny, allow) is DENIED
    both = {"Version": "2012-10-17", "Statement": [*deny["Statement"], *allow["Statement"]]}
    assert verdict(both) is DENIED


def test_a_statement_need_not_stand_in_a_list() -> None:
    """IAM takes one without brackets, and lists of one."""
    [statement] = policy(Action=[INVOKE], Resource=[ENDPOINT])["Statement"]

    assert verdict({"Statement": statement, "Id": "a"}) is ALLOWED


@pytest.mark.parametrize(
    ("pattern", "is_match"),
    [
        ("*", True),
        ("sagemaker:*", True),
        ("sagemaker:InvokeEndpoint", True),
        ("sagemaker:INVOKEendpoint", True),
        ("SageMaker:InvokeEndpoint", True),
        ("sagemaker:Invoke*", True),
        ("sagemaker:?nvokeEndpoint", True),
        ("sagemaker:Invoke", False),
        ("sts:*", False),
        (["s3:GetObject", "sagemaker:Invoke*"], True),
    ],
)
def test_actions(pattern: Any, is_match: bool) -> None:
    """Without case, with wildcards; NotAction is all others."""
    assert verdict(policy(Action=pattern)) is (ALLOWED if is_match else SILENT)
    assert verdict(policy(Action=None, NotAction=pattern)) is (SILENT if is_match else ALLOWED)


@pytest.mark.parametrize(
    ("pattern", "is_match"),
    [
        ("*", True),
        (ENDPOINT, True),
        ("arn:aws:sagemaker:*:*:endpoint/*", True),
        ("arn:*:sagemaker:us-????-1:123456789012:*", True),
        ("arn:aws:sagemaker:us-east-1:123456789012:endpoint/poly", False),
        ("arn:aws:sagemaker:us-east-1:123456789012:ENDPOINT/polyhost", False),
        ("arn:aws:sagemaker:us-east-1:999999999999:endpoint/polyhost", False),
        ("arn:aws:sagemaker:*:endpoint/polyhost:*:*", False),
        ("arn:aws:sagemaker:us-east-1:123456789012:endpoint[/]polyhost", False),
        (["arn:aws:s3:::bucket/*", ENDPOINT], True),
    ],
)
def test_resources(pattern: Any, is_match: bool) -> None:
    """Part by part, with case; NotResource is all others."""
    assert verdict(policy(Resource=pattern)) is (ALLOWED if is_match else SILENT)
    assert verdict(policy(Resource=None, NotResource=pattern)) is (SILENT if is_match else ALLOWED)


@pytest.mark.parametrize(
    ("operator", "value", "is_true", "without_key"),
    [
        ("StringEquals", "boston/a.tar.gz", True, False),
        ("StringEquals", "boston/*", False, False),
        ("StringEquals", ["x", "boston/a.tar.gz"], True, False),
        ("StringEquals", "Boston/a.tar.gz", False, False),
        ("StringNotEquals", "boston/a.tar.gz", False, True),
        ("StringNotEquals", ["x", "boston/a.tar.gz"], False, True),
        ("StringNotEquals", ["x", "y"], True, True),
        ("StringEqualsIgnoreCase", "BOSTON/A.tar.GZ", True, False),
        ("StringNotEqualsIgnoreCase", "BOSTON/A.tar.GZ", False, True),
        ("StringLike", "boston/*", True, False),
        ("StringLike", "*", True, False),
        ("StringLike", "b?ston/*.gz", True, False),
        ("StringLike", "[b]oston/*", False, False),
        ("StringLike", ["houston/*", "boston/*"], True, False),
        ("StringLike", "oston/*", False, False),
        ("StringNotLike", "boston/*", False, True),
        ("StringNotLike", "houston/*", True, True),
        ("StringEqualsIfExists", "boston/a.tar.gz", True, True),
        ("StringEqualsIfExists", "x", False, True),
        ("StringLikeIfExists", "houston/*", False, True),
        ("StringNotLikeIfExists", "boston/*", False, True),
        ("ForAnyValue:StringLike", "boston/*", True, False),
        ("ForAnyValue:StringNotLike", "houston/*", True, False),
        ("ForAllValues:StringLike", "boston/*", True, True),
        ("ForAllValues:StringLike", "houston/*", False, True),
        ("ForAnyValue:StringLikeIfExists", "boston/*", True, True),
    ],
)
def test_text_operators(operator: str, value: Any, is_true: bool, without_key: bool) -> None:
    """With the key, and in a request that brings none."""
    condition = {operator: {"sagemaker:targetMODEL": value}}

    assert holds(condition, {MODEL: "boston/a.tar.gz"}) is is_true
    assert holds(condition, {}) is without_key


@pytest.mark.parametrize(
    ("operator", "value", "is_true"),
    [
        ("ArnLike", "arn:aws:iam::123456789012:user/a*", True),
        ("ArnEquals", "arn:aws:iam::*:user/anna", True),
        ("ArnLike", "*", True),
        ("ArnLike", "arn:aws:iam:*:user/anna:x", False),
        ("ArnNotLike", "arn:aws:iam::*:role/*", True),
        ("ArnNotEquals", "arn:aws:iam::123456789012:user/anna", False),
        ("ArnLikeIfExists", "arn:aws:iam::*:role/*", False),
    ],
)
def test_arn_operators(operator: str, value: str, is_true: bool) -> None:
    """A wildcard stays in its part of the ARN."""
    context = {"aws:PrincipalArn": "arn:aws:iam::123456789012:user/anna"}

    assert holds({operator: {"aws:PrincipalArn": value}}, context) is is_true


def test_what_is_no_arn_is_like_none() -> None:
    """A value that a client chose may be anything."""
    assert not holds({"ArnLike": {MODEL: "arn:*:*:*:*:*"}}, {MODEL: "arn:b:c"})
    assert holds({"ArnNotLike": {MODEL: "arn:*:*:*:*:*"}}, {MODEL: "arn:b:c"})


@pytest.mark.parametrize(("value", "given_true", "given_false"), [("true", True, False), (False, False, True)])
def test_bool(value: Any, given_true: bool, given_false: bool) -> None:
    """As text or as JSON's own."""
    condition = {"Bool": {"aws:SecureTransport": value}}

    assert holds(condition, {"aws:SecureTransport": "true"}) is given_true
    assert holds(condition, {"aws:SecureTransport": "false"}) is given_false
    assert holds(condition, {}) is False
    assert holds({"BoolIfExists": {"aws:SecureTransport": value}}, {}) is True


def test_null_asks_whether_a_key_is_missing() -> None:
    """true: it must be missing; false: it must be there."""
    assert holds({"Null": {MODEL: "true"}}, {})
    assert not holds({"Null": {MODEL: True}}, {MODEL: "a"})
    assert holds({"Null": {MODEL: "false"}}, {MODEL: "a"})
    assert not holds({"Null": {MODEL: "false"}}, {})


def test_all_operators_and_all_keys_must_hold() -> None:
    """Values are alternatives, everything else adds up."""
    condition = {
        "StringLike": {MODEL: ["boston/*", "common/*"], "aws:username": "a*"},
        "StringNotEquals": {"sagemaker:TargetVariant": "blue"},
    }

    assert holds(condition, {MODEL: "common/x", "aws:username": "anna"})
    assert not holds(condition, {MODEL: "common/x", "aws:username": "bert"})
    assert not holds(condition, {MODEL: "common/x"})
    assert not holds(condition, {MODEL: "common/x", "aws:username": "anna", "sagemaker:TargetVariant": "blue"})


def test_variables_are_the_requests_values() -> None:
    """In conditions and resources; what they bring is no wildcard, and what is escaped is none either."""
    own_folder = {"StringLike": {MODEL: "${aws:username}/*"}}
    own_endpoint = policy(Resource="arn:aws:sagemaker:*:*:endpoint/${aws:username}")

    assert holds(own_folder, {MODEL: "anna/x", "aws:username": "anna"})
    assert not holds(own_folder, {MODEL: "bert/x", "aws:username": "anna"})
    assert not holds(own_folder, {MODEL: "bert/x", "aws:username": "*"})
    assert not holds({"StringEquals": {MODEL: "${aws:username}"}}, {MODEL: "bert", "aws:username": "anna"})
    assert holds({"StringLike": {MODEL: "${*}${?}${$}*"}}, {MODEL: "*?$x"})
    assert not holds({"StringLike": {MODEL: "${*}"}}, {MODEL: "x"})
    assert verdict(own_endpoint, context={"aws:username": "polyhost"}) is ALLOWED
    assert verdict(own_endpoint, context={"aws:username": "poly*"}) is SILENT


@pytest.mark.parametrize(
    "statement",
    [
        {"Resource": None, "NotResource": "arn:aws:sagemaker:*:*:endpoint/${aws:username}"},
        {"Condition": {"StringNotLike": {MODEL: "${aws:username}/*"}}},
        {"Condition": {"StringLikeIfExists": {"sagemaker:TargetVariant": "${aws:username}"}}},
    ],
)
def test_a_variable_without_a_value_never_allows(statement: dict[str, Any]) -> None:
    """Negations would come true of nothing: an Allow does not apply, a Deny does."""
    assert verdict(policy(**statement), context={MODEL: "x"}) is SILENT
    assert verdict(policy(Effect="Deny", **statement), context={MODEL: "x"}) is DENIED


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ({"Effect": "allow"}, "Invalid enum value 'allow' - at `$.Statement[0].Effect`"),
        ({"Effect": None}, "missing required field `Effect`"),
        ({"Action": None}, "a statement needs Action or NotAction, and not both - at `$.Statement[0]`"),
        ({"NotAction": "*"}, "a statement needs Action or NotAction, and not both"),
        ({"Resource": None}, "a statement needs Resource or NotResource, and not both"),
        ({"Action": []}, "Action or NotAction is an empty list"),
        ({"Action": "InvokeEndpoint"}, "the action 'InvokeEndpoint' is not of the form service:Name"),
        ({"Action": "sagemaker:${aws:username}"}, "is not of the form service:Name"),
        ({"Resource": "polyhost"}, "the resource 'polyhost' is neither * nor an ARN of six parts"),
        ({"Resource": "arn:*"}, "the resource 'arn:*' is neither * nor an ARN"),
        ({"Principal": "*"}, "unknown field `Principal` - at `$.Statement[0]`"),
        ({"Conditions": {}}, "unknown field `Conditions`"),
        ({"Condition": {"StringMatches": {MODEL: "a"}}}, "the operator 'StringMatches' is not known here: there are"),
        ({"Condition": {"IfExists": {MODEL: "a"}}}, "the operator 'IfExists' is not known here"),
        ({"Condition": {"NullIfExists": {MODEL: "true"}}}, "the operator 'NullIfExists' is not known here"),
        ({"Condition": {"ForSomeValues:StringLike": {MODEL: "a"}}}, "the operator 'ForSomeValues:StringLike' is not"),
        ({"Condition": {"IpAddress": {"aws:SourceIp": "::1"}}}, "the condition key 'aws:SourceIp' is not known here"),
        ({"Condition": {"StringLike": {MODEL: []}}}, "StringLike gives no value for sagemaker:TargetModel"),
        ({"Condition": {"Bool": {"aws:SecureTransport": "yes"}}}, "'yes' is neither true nor false"),
        ({"Condition": {"Null": {MODEL: "maybe"}}}, "'maybe' is neither true nor false"),
        ({"Condition": {"ArnLike": {"aws:PrincipalArn": "anna"}}}, "'anna' is not an ARN of six parts"),
        ({"Condition": {"StringLike": {MODEL: "${aws:PrincipalTag/team}/*"}}}, "the variable ${aws:PrincipalTag/team}"),
        ({"Condition": {"StringLike": {MODEL: "${aws:username, 'x'}"}}}, "the variable ${aws:username, 'x'} is not"),
        ({"Condition": {"StringLike": {MODEL: "${aws:username"}}}, "has no end"),
        ({"Condition": {"StringLike": MODEL}}, "Expected `object`, got `str`"),
        ({"Condition": None, "Sid": 1}, "Expected `str`, got `int` - at `$.Statement[0].Sid`"),
    ],
)
def test_what_is_not_understood_is_refused(statement: dict[str, Any], words: str) -> None:
    """With its place, and never passed over."""
    with pytest.raises(ValueError) as caught:
        verdict(policy(**statement))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value: line 1 column 1"),
        ("[" * 2048, "too many brackets"),
        ('{"Statement": []', "line 1 column 17"),
        ('{"Statement": [], "Statement": []}', "'Statement' is there twice in one object"),
        ('{"Version": "2012-10-18", "Statement": []}', "Invalid enum value '2012-10-18' - at `$.Version`"),
        ('{"Version": "2012-10-17"}', "missing required field `Statement`"),
        (json.dumps({"Statement": policy(Resource="arn:aws:x:::${aws:userid}")["Statement"]}), 'need "Version": "2012'),
    ],
)
def test_what_is_no_policy_is_refused(text: str, words: str) -> None:
    """Broken JSON, a field given twice, a version that there is not."""
    with pytest.raises(ValueError) as caught:
        read_policy(text)
    assert words in str(caught.value)


def matches_slowly(pattern: str, text: str) -> bool:
    """The meaning of wildcards, as plainly as can be."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(matches_slowly(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and matches_slowly(pattern[1:], text[1:])


@given(st.text("ab*?[]!\n", max_size=8), st.text("ab*?[]!\n", max_size=8))
def test_wildcards_mean_what_they_should(pattern: str, text: str) -> None:
    """Against the plainest matcher; brackets are no wildcards."""
    assert holds({"StringLike": {MODEL: pattern}}, {MODEL: text}) is matches_slowly(pattern, text)


def test_a_pattern_full_of_stars_ends() -> None:
    """A session's policy comes from a client: it must not keep the server busy (this would run for years)."""
    assert not holds({"StringLike": {MODEL: "*a" * 500 + "b"}}, {MODEL: "a" * 1024})


def test_every_key_and_operator_is_in_the_docs() -> None:
    """docs/security.md lists what may stand in a condition."""
    docs = (ROOT / "docs" / "security.md").read_text()
    for name in (*KEYS, *_OPERATORS, "Null"):
        assert f"`{name}`" in docs


# Random policies, and IAM's rules once more as AWS's documentation says them, for every request there is

ACTIONS = ("sagemaker:InvokeEndpoint", "sagemaker:ListModels", "iam:GetUser")
RESOURCES = ("arn:aws:sagemaker:r:1:endpoint/a", "arn:aws:sagemaker:r:1:endpoint/b", "arn:aws:sagemaker:s:1:model/a")
VALUES = ("boston/a", "Boston/a", "houston/b")
CONTEXTS: tuple[dict[str, str], ...] = ({}, *({MODEL: value} for value in VALUES))
PATTERNS = st.sampled_from(["*", "boston/*", "*/?", "?oston/a", "boston/a", "houston/b", "", "b*a*"])


def one_or_more(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str | list[str]]:
    return st.one_of(texts, st.lists(texts, min_size=1, max_size=3))


CONDITIONS = st.dictionaries(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "", "ForAnyValue:", "ForAllValues:"]),
        st.sampled_from(["StringEquals", "StringNotEquals", "StringEqualsIgnoreCase", "StringLike", "StringNotLike"]),
        st.sampled_from(["", "", "IfExists"]),
    ),
    st.fixed_dictionaries({MODEL: one_or_more(PATTERNS)}),
    max_size=2,
)
STATEMENTS = st.builds(
    lambda effect, action, resource, condition: {"Effect": effect, **action, **resource, "Condition": condition},
    st.sampled_from(["Allow", "Allow", "Deny"]),
    st.dictionaries(
        st.sampled_from(["Action", "NotAction"]),
        one_or_more(st.sampled_from([*ACTIONS, "*", "sagemaker:*", "SAGEMAKER:invoke*", "iam:?etUser"])),
        min_size=1,
        max_size=1,
    ),
    st.dictionaries(
        st.sampled_from(["Resource", "NotResource"]),
        one_or_more(
            st.sampled_from([*RESOURCES, "*", "arn:aws:sagemaker:*:*:endpoint/*", "arn:*:*:r:1:*", "arn:aws:*:s:?:*/a"])
        ),
        min_size=1,
        max_size=1,
    ),
    CONDITIONS,
)


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def matches(pattern: str, text: str) -> bool:
    """A star is anything, a question mark any one character."""
    if not pattern or not text:
        return not pattern.strip("*") and not text
    if pattern[0] == "*":
        return matches(pattern[1:], text) or matches(pattern, text[1:])
    return pattern[0] in ("?", text[0]) and matches(pattern[1:], text[1:])


def arn_matches(pattern: str, text: str) -> bool:
    return pattern == "*" or all(map(matches, pattern.split(":", 5), text.split(":", 5)))


def condition_holds(operator: str, wanted: list[str], value: str | None) -> bool:
    quantifier, _, name = operator.rpartition(":")
    is_negated = "Not" in name
    if value is None:
        if name.endswith("IfExists") or quantifier == "ForAllValues":
            return True
        return is_negated and quantifier != "ForAnyValue"
    if "IgnoreCase" in name:
        found = value.lower() in [text.lower() for text in wanted]
    elif "Like" in name:
        found = any(matches(text, value) for text in wanted)
    else:
        found = value in wanted
    return found != is_negated


def applies(statement: dict[str, Any], action: str, resource: str, context: Mapping[str, str]) -> bool:
    actions = listed(statement.get("Action", statement.get("NotAction")))
    resources = listed(statement.get("Resource", statement.get("NotResource")))
    has_action = any(matches(text.lower(), action.lower()) for text in actions)
    has_resource = any(arn_matches(text, resource) for text in resources)
    return (
        has_action == ("Action" in statement)
        and has_resource == ("Resource" in statement)
        and all(
            condition_holds(operator, listed(values), context.get(key))
            for operator, keys in statement["Condition"].items()
            for key, values in keys.items()
        )
    )


@given(st.lists(STATEMENTS, min_size=1, max_size=4))
def test_a_random_policy_is_decided_as_iam_decides_it(statements: list[dict[str, Any]]) -> None:
    document = {"Version": "2012-10-17", "Statement": statements}
    for action, resource, context in itertools.product(ACTIONS, RESOURCES, CONTEXTS):
        effects = {one["Effect"] for one in statements if applies(one, action, resource, context)}
        expected = DENIED if "Deny" in effects else ALLOWED if effects else SILENT
        assert verdict(document, action=action, resource=resource, context=context) is expected
