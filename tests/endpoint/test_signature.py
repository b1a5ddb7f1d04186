"""Signatures: what botocore signs is verified, and nothing else."""

from __future__ import annotations

import hashlib
import hmac
import string
from datetime import datetime, time, timedelta, timezone
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from polyhost.endpoint.access import Access
from polyhost.endpoint.access.signature import Claim, Keyed, canonical_request, check_signature, signing_key
from polyhost.service_errors import NotAuthenticated
from support.principals import ANNA, House, asked
from support.signing import Wire, signed, signed_again

LETTERS = string.ascii_letters + string.digits
TARGET = "x-amzn-sagemaker-target-model"
NOT_GENERATED = {TARGET, "host", "authorization", "date", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
segments = texts.map(lambda text: quote(text, safe="~:@!$'()*,;")).filter(lambda part: part not in ("", ".", ".."))
paths = st.lists(segments, max_size=4).map(lambda parts: "/" + "/".join(parts))
queries = st.lists(st.tuples(texts, texts), max_size=4).map(
    lambda pairs: "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in pairs),
)
names = st.builds(
    str.__add__,
    st.sampled_from(["", "x-amz-", "x-amzn-sagemaker-", "content-"]),
    st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=12),
).filter(lambda name: name not in NOT_GENERATED)
# What may stand in a header field; HTTP itself takes no space at the ends.
values = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20).map(lambda text: text.strip(" "))
headers_sent = st.dictionaries(names, values, max_size=5)
requests = st.builds(
    lambda method, path, query, headers, body: signed(
        f"http://127.0.0.1:8080{path}" + (f"?{query}" if query else ""),
        method=method,
        headers=headers,
        body=body,
        **ANNA,
    ),
    st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    paths,
    queries,
    headers_sent,
    st.binary(max_size=50),
)


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Access:
    return House(tmp_path_factory.mktemp("house")).access


def type_of_refusal(access: Access, wire: Wire, service: str = "sagemaker") -> str:
    with pytest.raises(NotAuthenticated) as caught:
        asked(access, wire, service)
    assert ANNA["secret"] not in str(caught.value)
    return caught.value.type


@given(wire=requests)
def test_what_botocore_signs_is_verified(access: Access, wire: Wire) -> None:
    """Any path in its normal form, query, header fields and body."""
    assert asked(access, wire).arn == "arn:aws:iam::123456789012:user/anna"


def changed_text(data: st.DataObject, text: str) -> str:
    """With another letter in the place of one byte that is not white space."""
    places = [place for place, byte in enumerate(text) if not byte.isspace()]
    assume(places)
    place = data.draw(st.sampled_from(places))
    byte = data.draw(st.sampled_from(LETTERS).filter(lambda byte: byte != text[place]))
    return text[:place] + byte + text[place + 1 :]


def changed(data: st.DataObject, wire: Wire) -> Wire:
    part = data.draw(st.sampled_from(["method", "path", "query", "header", "gone", "body", "longer"]))
    signed_headers = wire.headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    name = data.draw(st.sampled_from([*signed_headers, "authorization"]))
    match part:
        case "method":
            return wire._replace(method="PATCH")
        case "path":
            return wire._replace(path=changed_text(data, wire.path))
        case "query":
            return wire._replace(query=changed_text(data, wire.query) if wire.query else "a")
        case "header":
            return wire.with_header(name, changed_text(data, wire.headers[name]))
        case "gone":
            return wire.without_header(name)
        case "body":
            assume(wire.body)
            place = data.draw(st.integers(0, len(wire.body) - 1))
            flipped = wire.body[place] ^ data.draw(st.integers(1, 255))
            return wire._replace(body=wire.body[:place] + bytes([flipped]) + wire.body[place + 1 :])
        case _:
            return wire._replace(body=wire.body + b"\0")


@given(wire=requests, data=st.data())
def test_whatever_is_changed_on_the_way_is_refused(access: Access, wire: Wire, data: st.DataObject) -> None:
    """One byte of the method, path, query, a signed header field, the body or the claim itself."""
    type_of_refusal(access, changed(data, wire))


def changes(wire: Wire) -> dict[str, Wire]:
    """One in every part; each leaves a request that may be signed."""
    return {
        "method": wire._replace(method="PATCH"),
        "path": wire._replace(path=f"{wire.path.rstrip('/')}/x"),
        "query": wire._replace(query=f"{wire.query}&x=1" if wire.query else "x=1"),
        "host": wire.with_header("host", "elsewhere:8080"),
        "date": wire.with_header("x-amz-date", moved_by_a_second(wire.headers["x-amz-date"])),
        "target": wire.with_header(TARGET, wire.headers[TARGET] + "x"),
        "body": wire._replace(body=wire.body + b"x"),
    }


def moved_by_a_second(timestamp: str) -> str:
    form = "%Y%m%dT%H%M%SZ"
    moment = datetime.strptime(timestamp, form).replace(tzinfo=timezone.utc)
    # Into the same day: the claim names it.
    step = timedelta(seconds=-1 if moment.time() > time(12) else 1)
    return (moment + step).strftime(form)


@given(wire=requests)
def test_a_changed_request_needs_the_signature_that_botocore_gives_it(access: Access, wire: Wire) -> None:
    """Whatever was remembered of the request before it: the old signature does not do, botocore's new one does."""
    wire = signed_again(wire.with_header(TARGET, "boston.tar.gz"), **ANNA)
    assert asked(access, wire)

    for changed_wire in changes(wire).values():
        assert type_of_refusal(access, changed_wire) == "InvalidSignatureException"
        assert asked(access, signed_again(changed_wire, **ANNA))
        assert asked(access, wire)


@given(authorization=st.text(st.characters(codec="latin-1")) | st.text("AWS4-HMAC SHA256Credential=/,;"))
def test_any_nonsense_is_refused_in_words(access: Access, authorization: str) -> None:
    """Whatever stands in the header, the answer is one of ours."""
    wire = signed(**ANNA).with_header("authorization", authorization)

    assert type_of_refusal(access, wire) == "IncompleteSignatureException"


def test_awss_own_example_is_verified() -> None:
    """The worked example of AWS's documentation, with the values that are printed there."""
    secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    headers = {
        "content-type": "application/x-www-form-urlencoded; charset=utf-8",
        "host": "iam.amazonaws.com",
        "x-amz-date": "20150830T123600Z",
    }
    claim = Claim.of("AKIDEXAMPLE", "20150830", "us-east-1", "iam", "content-type;host;x-amz-date")
    signature = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"

    key = signing_key(secret, "20150830", "us-east-1", "iam")
    assert key.hex() == "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
    query = "Version=2010-05-08&Action=ListUsers"

    def check(query: str) -> None:
        check_signature(
            claim, signature, "20150830T123600Z", secret,
            method="GET", path="/", query=query, headers=headers, body=b"",
        )  # fmt: skip

    check(query)
    with pytest.raises(NotAuthenticated, match="does not match the signature you provided"):
        check(query + "x")


def test_spaces_within_a_field_count_as_one() -> None:
    """As every signer writes the canonical request."""
    claim = Claim.of("", "", "", "", "host;x")
    lines = canonical_request("GET", "/", "", {"host": "a", "x": "  1   2 "}, claim, "").split(b"\n")

    assert lines[3:5] == [b"host:a", b"x:1 2"]


def test_bytes_that_are_no_text_are_signed_as_they_are() -> None:
    """Bytes that are no UTF-8 stay apart from text that would read the same."""
    claim = Claim.of("", "", "", "", "host")
    [first, second] = [
        canonical_request("GET", f"/{wire}", wire, {"host": wire}, claim, "") for wire in ("\xe9", "\xc3\xa9")
    ]

    assert first.split(b"\n")[1:4] == [b"/%E9", b"\xe9=", b"host:\xe9"]
    assert second.split(b"\n")[1:4] == [b"/%C3%A9", b"\xc3\xa9=", b"host:\xc3\xa9"]


@pytest.mark.parametrize("path", ["//endpoints", "/endpoints/./x", "/endpoints/a/../x", "/endpoints//"])
def test_a_path_counts_as_it_came(access: Access, path: str) -> None:
    """Signers tidy a path before they sign; what is routed is the path that came, so that must be the tidy one."""
    wire = signed(f"http://127.0.0.1:8080{path}", **ANNA)._replace(path=path)

    assert type_of_refusal(access, wire) == "InvalidSignatureException"


@pytest.mark.parametrize("name", ["host", "x-amz-date", "x-amz-target", "x-amzn-sagemaker-target-model"])
def test_a_field_that_says_what_is_asked_for_must_be_signed(access: Access, name: str) -> None:
    """Neither left out of the signature nor added afterwards."""
    wire = signed(headers={name: "a"} if name.startswith(("x-amz-target", "x-amzn")) else {}, **ANNA)
    authorization = wire.headers["authorization"]
    for left_out in (authorization.replace(f";{name}", ""), authorization.replace(f"{name};", "")):
        if left_out != authorization:
            with pytest.raises(NotAuthenticated, match=f"'{name}' must be a 'SignedHeader'"):
                asked(access, wire.with_header("authorization", left_out))
    with pytest.raises(NotAuthenticated, match="'x-amz-meta' must be a 'SignedHeader'"):
        asked(access, wire.with_header("x-amz-meta", "1"))


def test_a_request_without_a_host_is_refused(access: Access) -> None:
    """HTTP/1.0 needs none; a signature does."""
    wire = signed(**ANNA).without_header("host")
    authorization = wire.headers["authorization"].replace("host;", "")

    with pytest.raises(NotAuthenticated, match="'host' must be a 'SignedHeader'"):
        asked(access, wire.with_header("authorization", authorization))


def test_a_listed_field_must_have_been_sent(access: Access) -> None:
    """A name in SignedHeaders without a field is no empty field."""
    wire = signed(headers={"x-mine": ""}, **ANNA)

    with pytest.raises(NotAuthenticated, match="'x-mine' is in SignedHeaders but was not sent"):
        asked(access, wire.without_header("x-mine"))


def test_a_request_without_a_signature_is_told_so(access: Access) -> None:
    """Also one that brings it in the query."""
    wire = signed(**ANNA).without_header("authorization")

    assert type_of_refusal(access, wire) == "MissingAuthenticationTokenException"
    with pytest.raises(NotAuthenticated, match="Presigned URLs are not supported: send the signature in the Auth"):
        asked(access, wire._replace(query="X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a"))


def test_an_unsigned_payload_is_refused(access: Access) -> None:
    """`UNSIGNED-PAYLOAD` would let anybody on the way change the body; a true hash is welcome."""

    def with_hash(body_hash: str) -> Wire:
        return signed(headers={"x-amz-content-sha256": body_hash}, body=b"1,2,3", **ANNA)

    assert asked(access, with_hash(hashlib.sha256(b"1,2,3").hexdigest()))
    for untrue in ("UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", hashlib.sha256(b"1,2,4").hexdigest()):
        with pytest.raises(NotAuthenticated, match="unsigned payloads are not accepted"):
            asked(access, with_hash(untrue))


def test_a_signature_for_another_service_is_refused(access: Access) -> None:
    """What was signed for STS does not invoke, and the other way round; any region will do."""
    with pytest.raises(NotAuthenticated, match="correct service: 'sagemaker'"):
        asked(access, signed(service="sts", **ANNA))
    with pytest.raises(NotAuthenticated, match="correct service: 'sts'"):
        asked(access, signed(**ANNA), "sts")
    assert asked(access, signed(service="sts", region="eu-west-3", **ANNA), "sts")


@pytest.mark.parametrize(("ahead_secs", "words"), [(301, "Signature expired: "), (-301, "Signature not yet current: ")])
def test_a_signature_is_good_for_five_minutes(tmp_path: Path, ahead_secs: int, words: str) -> None:
    """Before and after; the sentence names both times."""
    house = House(tmp_path)
    wire = signed(**ANNA)
    house.clock.ahead_secs = ahead_secs * 0.95
    assert asked(house.access, wire)

    house.clock.ahead_secs = ahead_secs * 1.05
    with pytest.raises(NotAuthenticated, match=f"{words}{wire.headers['x-amz-date']} is .* 5 min"):
        asked(house.access, wire)


def test_the_scopes_date_is_the_requests(access: Access) -> None:
    """A signing key of another day does not sign."""
    wire = signed(**ANNA)
    authorization = wire.headers["authorization"].replace(wire.headers["x-amz-date"][:8], "20200101")

    with pytest.raises(NotAuthenticated, match="Date in Credential scope does not match"):
        asked(access, wire.with_header("authorization", authorization))


def test_a_date_field_may_stand_for_the_other(access: Access) -> None:
    """Signers that are given a `Date` send no X-Amz-Date; without either there is nothing to check."""
    wire = signed(headers={"date": "set by the signer"}, **ANNA)
    assert "x-amz-date" not in wire.headers
    assert asked(access, wire)

    unsigned = wire.with_header("authorization", wire.headers["authorization"].replace("date;", ""))
    assert type_of_refusal(access, unsigned) == "IncompleteSignatureException"
    assert type_of_refusal(access, wire.with_header("date", "yesterday")) == "IncompleteSignatureException"


@pytest.mark.parametrize("timestamp", ["", "20250131", "2025-01-31T00:00:00Z", "99999999T999999Z", "²0250131T000000Z"])
def test_a_time_that_is_none_is_refused(access: Access, timestamp: str) -> None:
    """In words, not by a failure."""
    assert (
        type_of_refusal(access, signed(**ANNA).with_header("x-amz-date", timestamp)) == "IncompleteSignatureException"
    )


def test_an_unknown_key_and_a_wrong_secret_are_refused(access: Access) -> None:
    """In AWS's words."""
    with pytest.raises(NotAuthenticated, match=r"^The security token included in the request is invalid\.$") as caught:
        asked(access, signed(key="AKIANOBODY0000000000", secret=ANNA["secret"]))
    assert caught.value.type == "UnrecognizedClientException"
    with pytest.raises(NotAuthenticated, match=r"does not match the signature you provided\. Check your AWS Secret"):
        asked(access, signed(key=ANNA["key"], secret=ANNA["secret"].upper()))


@given(st.binary(max_size=64), st.lists(st.binary(max_size=200), max_size=3))
def test_a_key_signs_as_hmac_does(key: bytes, lines: list[bytes]) -> None:
    """And texts one after the other do not meet."""
    keyed = Keyed(key)
    assert [keyed.hexdigest(text) for text in lines] == [hmac.new(key, text, "sha256").hexdigest() for text in lines]


@pytest.mark.parametrize(
    ("value", "signed_as"),
    [("a", "a"), (" a", "a"), ("a ", "a"), ("a  b", "a b"), ("a\tb", "a b"), ("a: b", "a: b"), ("", ""), ("%s", "%s"),
     ("a\xa0 ", "a\xa0"), ("a\x0bb", "a b")],
)  # fmt: skip
def test_values_are_signed_without_the_blanks_around_them(value: str, signed_as: str) -> None:
    """As botocore does: some are read at once, others by their blanks."""
    for names, headers in (("x", {"x": value}), ("host;x%d", {"host": "h", "x%d": value})):
        claim = Claim.of("", "", "", "", names)
        lines = canonical_request("GET", "/", "", headers, claim, "").decode("latin-1").split("\n")
        assert lines[-4] == f"{claim.names[-1]}:{signed_as}"
