"""How often callers may call: the decision, what is remembered, and what they are answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config as BotoConfig
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from polyhost.api import cloudwatch, hosting, query, runtime
from polyhost.api.anybody import Anybody
from polyhost.api.http import Reply, Request
from polyhost.api.origins import origins_of
from polyhost.api.routes import Guard, Route
from polyhost.config import Config
from polyhost.endpoint.access import Access
from polyhost.endpoint.access.throttle import Throttle, admitted, site_of
from polyhost.errors import InvalidSetting
from polyhost.http_limits import Rate
from polyhost.server import serve
from polyhost.service_errors import AccessDenied, EndpointError, Throttled
from support.endpoint import EndpointServer
from support.principals import ACCOUNT, ANNA, BERT, BOSTON_ONLY, CARLS_KEY, House, asked, caller, document
from support.signing import Wire, signed

JSON_READ = Request("POST", "/", "", {"x-amz-target": "GraniteServiceVersion20100801.ListMetrics"}, b"{}")
QUERY_READ = Request("POST", "/", "", {}, b"Action=ListMetrics&Version=2010-08-01")
HOUSE = "1998,2150,3,2.5,0.4,2"


# The decision


@pytest.mark.parametrize(
    ("rate", "arrivals", "waits"),
    [
        # One a second, none ahead: the second one at once waits, and again until its second is over.
        (Rate(1, 1), [0, 0, 0.5, 1, 1.5, 2], [0, 1, 0.5, 0, 0.5, 0]),
        # A burst of three, then one each half second.
        (Rate(2, 3), [0, 0, 0, 0, 0.5, 0.5], [0, 0, 0, 0.5, 0, 0.5]),
        # What was not used comes back, up to the burst.
        (Rate(2, 3), [0, 0, 0, 100, 100, 100, 100], [0, 0, 0, 0, 0, 0, 0.5]),
        # Half a request in a second.
        (Rate(0.5, 1), [0, 1, 2, 4], [0, 1, 0, 0]),
        # Whoever goes on asking while he must wait waits no longer for that.
        (Rate(1, 1), [0, 0.1, 0.2, 0.3, 1], [0, 0.9, 0.8, 0.7, 0]),
        # A clock that goes back makes nobody wait longer than a burst takes.
        (Rate(10, 1), [5, 4.95, 5.1], [0, 0.15, 0]),
    ],
)
def test_which_requests_pass(rate: Rate, arrivals: list[float], waits: list[float]) -> None:
    """By the definition of a bucket that holds `burst` and is filled `per_sec`; the waits are counted by hand."""
    due, seen = 0.0, []
    for now in arrivals:
        due, wait_secs = admitted(due, now + 1000, rate)
        seen.append(wait_secs)
    assert seen == pytest.approx(waits, abs=1e-6)


class Bucket:
    """The textbook's: tokens, and when they were counted."""

    def __init__(self, rate: Rate) -> None:
        self.rate, self.tokens, self.at = rate, float(rate.burst), 0.0

    def passes(self, now: float) -> bool:
        self.tokens = min(self.rate.burst, self.tokens + (now - self.at) * self.rate.per_sec)
        self.at = now
        if self.tokens < 1 - 1e-4:
            return False
        self.tokens -= 1
        return True


@given(
    st.builds(Rate, st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0, 64.0]), st.integers(1, 6)),
    st.lists(st.sampled_from([0.0, 0.0, 1 / 64, 1 / 8, 1.0, 5.0]), max_size=60),
)
def test_it_decides_as_a_bucket_of_tokens_does(rate: Rate, steps: list[float]) -> None:
    bucket, due, now = Bucket(rate), 0.0, 0.0
    for step in steps:
        now += step
        due, wait_secs = admitted(due, now, rate)
        assert (wait_secs == 0.0) == bucket.passes(now), now


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("::1", "::/64"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"), ("", ""), ("nonsense", "nonsense"),
    ],
)  # fmt: skip
def test_what_an_address_counts_as(address: str, site: str) -> None:
    assert site_of(address) == site


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10", Rate(10, 10)),
        ("0.5", Rate(0.5, 1)),
        ("2.5", Rate(2.5, 3)),
        ("10:50", Rate(10, 50)),
        ("0.1:7", Rate(0.1, 7)),
    ],
)
def test_how_a_rate_is_written(text: str, rate: Rate) -> None:
    assert Config.build({"rate_limit": [text]}, {}).rate_limit == rate
    assert Config.build({}, {"POLYHOST_RATE_LIMIT": text}).rate_limit == rate


@pytest.mark.parametrize("text", ["0", "-1", "x", "1:0", "1:x", "1:2:3", "nan", "inf", "1:1.5", "1e9", "1e-320", ":5"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(InvalidSetting, match=f"--rate-limit: '{text}' is not a rate"):
        Config.build({"rate_limit": [text]}, {})


@pytest.mark.parametrize("setting", [{"rate_limit": Rate(1, 1)}, {"auth": "sigv4"}])
def test_a_server_without_an_endpoint_passes_over_neither_limits_nor_access(setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="need an endpoint"):
        serve(Config(**setting), {})


# What is remembered


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def passes(throttle: Throttle, who: str, rate: Rate) -> bool:
    try:
        throttle.admit(who, who, rate)
    except Throttled:
        return False
    return True


def test_callers_are_counted_apart() -> None:
    throttle = Throttle(now=Clock())
    assert [passes(throttle, who, Rate(1, 1)) for who in ("a", "b", "a", "b", "c")] == [True, True, False, False, True]


def test_many_callers_take_a_bounded_memory() -> None:
    """The one who was here the longest ago goes. Whoever goes on asking stays limited."""
    throttle = Throttle(now=Clock(), most_callers=10)
    assert passes(throttle, "busy", Rate(1, 1))
    for number in range(1000):
        assert passes(throttle, str(number), Rate(1, 1))
        assert not passes(throttle, "busy", Rate(1, 1))
        assert len(throttle) <= 10


def test_a_refusal_says_when_to_come_again() -> None:
    clock = Clock()
    throttle = Throttle(now=clock)
    throttle.admit("a", "user/a", Rate(0.25, 1))
    clock.now += 0.5
    with pytest.raises(
        Throttled, match=r"^Rate exceeded: user/a may make 0.25 requests per second, 1 at once\."
    ) as caught:
        throttle.admit("a", "user/a", Rate(0.25, 1))
    assert (caught.value.status, caught.value.type) == (429, "ThrottlingException")
    assert caught.value.retry_after_secs == 4  # 3.5, in whole seconds
    clock.now += 3.5
    throttle.admit("a", "user/a", Rate(0.25, 1))


def test_refusals_are_counted_by_caller() -> None:
    throttle = Throttle(now=Clock())
    for who in ("a", "a", "b", "a", "b", "c"):
        passes(throttle, who, Rate(1, 1))
    assert throttle.refused() == {"a": 2, "b": 1}


def test_refusals_of_many_callers_take_a_bounded_memory() -> None:
    throttle = Throttle(now=Clock())
    for who in range(1010):
        assert [passes(throttle, str(who), Rate(1, 1)) for _ in range(2)] == [True, False]
    refused = throttle.refused()
    assert (len(refused), refused["(other)"], sum(refused.values())) == (1001, 10, 1010)


# What is answered


@pytest.mark.parametrize(
    ("reply_of", "status"),
    [
        (lambda error: runtime.error_reply(error, "id"), 429),
        (lambda error: hosting.refused(error, "id"), 400),
        (lambda error: query.error_reply("urn:x", error, "id"), 429),
        (lambda error: cloudwatch.error_reply(JSON_READ, error, "id"), 429),
        (lambda error: cloudwatch.error_reply(QUERY_READ, error, "id"), 429),
    ],
    ids=["runtime", "control-plane", "sts", "cloudwatch-json", "cloudwatch-query"],
)
def test_each_protocol_says_when_to_come_again(reply_of: Callable[[EndpointError], Reply], status: int) -> None:
    reply = reply_of(Throttled("Rate exceeded.", retry_after_secs=7))
    assert (reply.status, reply.own_headers.count(b"\r\nretry-after: 7\r\n")) == (status, 1)
    assert b"retry-after" not in reply_of(AccessDenied("No.")).own_headers


# Callers of the auth file


def limited(folder: Path, **limits: dict[str, Any]) -> House:
    content = document()
    for one in (*content["users"], *content["roles"]):
        if one["name"] in limits:
            one["rate_limit"] = limits[one["name"]]
    return House(folder, content)


def read(house: House, rate: Rate | None = None, throttle: Throttle | None = None) -> Access:
    return Access.read(house.file, secret_folder=house.folder / "state", rate=rate, throttle=throttle)


SLOW = {"requests_per_sec": 0.001}
CARLS = Wire("POST", "/", "", {"authorization": f"Bearer {CARLS_KEY}"}, b"")


def test_the_file_limits_a_user_and_the_setting_all_others(tmp_path: Path) -> None:
    throttle = Throttle()
    access = read(limited(tmp_path, anna=SLOW | {"burst": 2}), Rate(0.001, 1), throttle)
    assert caller(access, ANNA)
    assert caller(access, ANNA)
    with pytest.raises(
        Throttled, match=f"arn:aws:iam::{ACCOUNT}:user/anna may make 0.001 requests per second, 2 at once"
    ):
        caller(access, ANNA)
    for wire in (signed(**BERT), CARLS):
        assert asked(access, wire)
        with pytest.raises(Throttled, match="1 at once"):
            asked(access, wire)
    assert throttle.refused() == {f"arn:aws:iam::{ACCOUNT}:user/{name}": 1 for name in ("anna", "bert", "carl")}


def test_without_a_limit_nobody_is_counted(tmp_path: Path) -> None:
    access = read(limited(tmp_path, anna=SLOW))
    for _ in range(50):
        assert caller(access, BERT)


def test_a_wrong_secret_takes_nothing_from_its_user(tmp_path: Path) -> None:
    """Else whoever knows a key's id could keep its owner out."""
    access = read(limited(tmp_path, anna=SLOW))
    for _ in range(3):
        with pytest.raises(Exception, match="signature we calculated"):
            caller(access, {**ANNA, "secret": "wrong" * 8})
    assert caller(access, ANNA)


def test_a_role_has_its_own_limit_however_its_sessions_are_called(tmp_path: Path) -> None:
    access = read(limited(tmp_path, **{"boston-only": SLOW | {"burst": 2}}))

    def session(who: dict[str, str], name: str) -> dict[str, str]:
        given = access.assume_role(caller(access, who), BOSTON_ONLY, name, 3600, None)
        return {"key": given.access_key_id, "secret": given.secret_access_key, "token": given.session_token}

    assert caller(access, session(ANNA, "monday"))
    assert caller(access, session(ANNA, "tuesday"))
    with pytest.raises(Throttled):
        caller(access, session(ANNA, "wednesday"))
    assert caller(access, session(BERT, "monday"))  # another's key


def test_a_limit_changes_with_the_file(tmp_path: Path) -> None:
    house = limited(tmp_path, anna=SLOW)
    assert caller(house.read(), ANNA)
    access = house.access
    assert caller(access, ANNA)
    with pytest.raises(Throttled):
        caller(access, ANNA)
    house.write(json.dumps(document()))
    house.wait_for_a_look()
    assert caller(access, ANNA)


@pytest.mark.parametrize(
    "limit",
    [
        {},
        {"requests_per_sec": 0},
        {"requests_per_sec": 1e-320},
        {"requests_per_sec": 1, "burst": 0},
        {"requests_per_sec": 1, "size": 1},
        5,
    ],
)
def test_a_limit_that_is_none_is_refused(tmp_path: Path, limit: Any) -> None:
    house = House(tmp_path)
    content = document()
    content["users"][0]["rate_limit"] = limit
    house.write(json.dumps(content))
    with pytest.raises(InvalidSetting, match=r"users\[0\]"):
        house.read()


# Where nobody says who he is


def route(guard: Guard, **more: Any) -> Route:
    return Route(methods=("GET",), path="/x", guard=guard, **more)


@pytest.mark.parametrize(
    ("found", "is_counted"),
    [
        (None, True), (route(Guard.POLICY), True), (route(Guard.HANDLER), True), (route(Guard.NOBODY), False),
        (route(Guard.TOKEN), False), (route(Guard.HANDLER, is_counted=False), False),
    ],
)  # fmt: skip
def test_which_requests_are_counted_by_address(found: Route | None, is_counted: bool) -> None:
    """Probes, metrics, the page and what it asks by itself are not."""
    throttle = Throttle()
    anybody = Anybody(origins_of("127.0.0.1", ()), Rate(0.001, 1), throttle)
    request = Request("GET", "/x", "", {}, b"", "192.0.2.7")
    anybody.require(request, found)
    if is_counted:
        with pytest.raises(Throttled, match=r"192\.0\.2\.7 may make"):
            anybody.require(request, found)
        anybody.require(request._replace(peer="192.0.2.8"), found)
        assert throttle.refused() == {"(addresses)": 1}
    else:
        anybody.require(request, found)


# Servers


@pytest.fixture(params=["1", "2"], ids=["one-process", "two-fronts"])
def open_server(request: pytest.FixtureRequest, samples_folder: Path) -> Iterator[EndpointServer]:
    """Three requests for each address, and no fourth one within the test."""
    server = EndpointServer(
        "native", samples_folder, "--rate-limit", "0.001:3", "--fronts", request.param, "--preload", "boston.tar.gz"
    )
    server.process.wait_for_line("ready for requests")  # a load may take longer than a call waits
    yield server
    assert server.stop() == 0, server.process.log


def test_an_address_is_limited_over_all_fronts(open_server: EndpointServer) -> None:
    """In each API's own form. Each request has a connection of its own, which any front may get."""
    target = {"X_Amzn_SageMaker_Target_Model": "boston.tar.gz", "Content_Type": "text/csv"}
    answers = [open_server.request("POST", "/invocations", HOUSE, **target) for _ in range(8)]
    assert [answer.status for answer in answers] == [200] * 3 + [429] * 5
    refused = answers[-1]
    assert refused.fields["x-amzn-errortype"] == "ThrottlingException"
    assert refused.json()["Message"].startswith(
        "Rate exceeded: 127.0.0.1 may make 0.001 requests per second, 3 at once."
    )
    assert 900 < int(refused.fields["retry-after"]) <= 1000
    for name, code, call in (
        ("sagemaker-runtime", "ThrottlingException", {"EndpointName": "polyhost", "Body": b"1"}),
        ("sagemaker", "ThrottlingException", {}),
        ("sts", "Throttling", {}),
    ):
        client = boto3.client(
            name, endpoint_url=open_server.url, region_name="us-east-1", aws_access_key_id="any",
            aws_secret_access_key="any", config=BotoConfig(retries={"total_max_attempts": 2, "mode": "standard"}),
        )  # fmt: skip
        do = {"sagemaker-runtime": "invoke_endpoint", "sagemaker": "list_endpoints", "sts": "get_caller_identity"}[name]
        with pytest.raises(ClientError) as caught:
            getattr(client, do)(**call)
        assert caught.value.response["Error"]["Code"] == code
        assert 900 < int(caught.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) <= 1000
        assert caught.value.response["ResponseMetadata"]["RetryAttempts"] == 1  # the SDK repeats it by itself
    assert open_server.request("GET", "/models").status == 429
    metrics = open_server.request("GET", "/metrics").body.decode()
    assert 'polyhost_throttled_requests_total{caller="(addresses)"} 12.0' in metrics  # 5, two of each API, and this one
    for path in ("/ping", "/ready", "/metrics", "/", "/dashboard/state"):
        assert open_server.request("GET", path).status == 200
