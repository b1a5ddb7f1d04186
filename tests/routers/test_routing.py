"""What `polyhost fleet` prints, in the real engines: which server a request goes to, and when it is sent again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.server import request

from routers.engines import Router, SettledRouter, Stand, certify, require, stands

pytestmark = pytest.mark.routers
ENGINES = ("haproxy", "envoy")
MODELS = [f"folder/model-{number}.tar.gz" for number in range(300)]
# Far above what a test asks: no model is hot. And one that comes back has its models at once.
NEVER_HOT = ("--copy-at=100000", "--slow-start=0")
# What part of the other servers' models gets another home while a server is away: Maglev's table is not a ring.
MOST_MOVED = {"haproxy": 0.0, "envoy": 0.02}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Stand]]:
    with stands(3) as made:
        yield made


@pytest.fixture(scope="module")
def router(engine: str, servers: list[Stand], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with start(engine, tmp_path_factory.mktemp(engine), servers) as router:
        yield router


def start(engine: str, folder: Path, servers: list[Stand], *options: str) -> Router:
    more = options or never_hot(engine)
    return SettledRouter(engine, folder, [server.port for server in servers], *more)


def never_hot(engine: str) -> tuple[str, ...]:
    return NEVER_HOT if engine == "haproxy" else ()


def moved(before: dict[str, str], after: dict[str, str], but: str) -> float:
    kept = [after[model] == home for model, home in before.items() if home != but]
    return 1 - sum(kept) / len(kept)


@pytest.fixture(autouse=True)
def healthy(servers: list[Stand]) -> None:
    for server in servers:
        server.decide = lambda _method, _path: 200
        server.is_ready = True
        server.asked.clear()


def test_every_model_has_one_home_and_all_servers_have_models(router: Router) -> None:
    homes = {model: router.home(model) for model in MODELS}
    again = {model: router.home(model) for model in MODELS}

    assert homes == again
    share = Counter(homes.values())
    # Of 300 that are divided by chance, a third is 100 ± 8.2; the ring's own unevenness is 2 % more.
    assert all(65 <= share[str(number)] <= 135 for number in range(3)), share


def test_every_way_to_one_model_leads_to_one_home(router: Router) -> None:
    target = {"X-Amzn-SageMaker-Target-Model": "a/b.tar.gz"}
    by_name, by_own_path, with_slash = (
        router.request("POST", path, b"1", headers).text
        for path, headers in (
            ("/endpoints/polyhost/invocations", target),
            ("/invocations", target),
            ("/endpoints/polyhost/invocations", {"x-amzn-sagemaker-target-model": "/a/b.tar.gz"}),
        )
    )
    assert by_name == by_own_path == with_slash

    for model in MODELS[:20]:
        name = model.removeprefix("folder/")
        ways = [
            ("POST", f"/models/{name}/invoke"), ("GET", f"/models/{name}"), ("DELETE", f"/models/{name}"),
            ("POST", f"/predictions/{name}"), ("POST", f"/predictions/{name}/x?y=z"), ("POST", f"/{name}/predict"),
            ("POST", f"/invocations?model_name={name}"), ("POST", f"/models?url=x&model_name={name}"),
        ]  # fmt: skip
        assert len({router.request(method, path).text for method, path in ways}) == 1, name


def test_the_open_inference_protocol_leads_to_the_same_homes(router: Router) -> None:
    for model in MODELS[:20]:
        ways = [
            ("POST", f"/v2/models/polyhost/{model}/infer"), ("POST", f"/v2/models/polyhost/{model}/versions/1/infer"),
            ("GET", f"/v2/models/polyhost/{model}/ready"), ("GET", f"/v2/models/polyhost/{model}"),
            ("GET", f"/v2/models/polyhost/{model}/versions/1"), ("GET", f"/v2/models/polyhost/{model}/ready?x=y"),
            ("POST", f"/v2/repository/models/polyhost/{model}/load"),
            ("POST", f"/v2/repository/models/polyhost/{model}/unload"),
        ]  # fmt: skip
        assert {router.request(method, path).text for method, path in ways} == {router.home(model)}, model
    for number in range(10):
        name = f"endpoint-{number}"
        ways = [("POST", f"/v2/models/{name}/infer"), ("POST", f"/v2/models/{name}/versions/1/infer"),
                ("GET", f"/v2/models/{name}"), ("GET", f"/v2/models/{name}/ready")]  # fmt: skip
        assert {router.request(method, path).text for method, path in ways} == {router.invoke("", name).text}, name


def test_endpoints_of_one_target_have_homes_of_their_own(router: Router) -> None:
    """Otherwise all endpoints' `model.tar.gz` would be on one server."""
    assert len({router.invoke("model.tar.gz", f"endpoint-{number}").text for number in range(30)}) == 3
    assert len({router.invoke("", f"endpoint-{number}").text for number in range(30)}) == 3


def test_what_is_for_no_model_goes_to_any_server(router: Router) -> None:
    assert {router.request("POST", "/", b"{}").text for _ in range(60)} == {"0", "1", "2"}


def test_two_routers_agree_whatever_addresses_servers_have(
    router: Router, engine: str, servers: list[Stand], tmp_path: Path
) -> None:
    """A server keeps its models by its number: here the second router knows three others, at other addresses."""
    with stands(3) as others, start(engine, tmp_path, others) as second:
        assert [second.home(model) for model in MODELS] == [router.home(model) for model in MODELS]


def test_a_server_that_is_not_ready_gets_nothing_and_others_keep_their_models(
    router: Router, servers: list[Stand]
) -> None:
    before = {model: router.home(model) for model in MODELS}
    servers[1].is_ready = False
    router.wait_for(2)
    after = {model: router.home(model) for model in MODELS}
    servers[1].is_ready = True
    router.wait_for(3)

    assert "1" not in after.values()
    assert moved(before, after, but="1") <= MOST_MOVED[router.engine]
    assert {after[model] for model, home in before.items() if home == "1"} == {"0", "2"}


@pytest.mark.parametrize(
    ("status", "method", "path", "answered"),
    [
        (503, "POST", "/endpoints/polyhost/invocations", 200),
        (503, "POST", "/invocations", 200),
        (503, "POST", "/v2/models/polyhost/a.tar.gz/infer", 200),
        (0, "POST", "/endpoints/polyhost/invocations", 200),
        (429, "POST", "/endpoints/polyhost/invocations", 429),
        (424, "POST", "/endpoints/polyhost/invocations", 424),
        (500, "POST", "/endpoints/polyhost/invocations", 500),
        (503, "POST", "/models/a.tar.gz/invoke", 503),
        (503, "POST", "/predictions/a.tar.gz", 503),
        (503, "POST", "/invocations?model_name=a.tar.gz", 503),
        (0, "POST", "/models/a.tar.gz/invoke", 502),
        (503, "POST", "/", 503),
        (0, "POST", "/", 502),
    ],
)
def test_only_what_may_be_repeated_is_sent_again(
    router: Router, servers: list[Stand], status: int, method: str, path: str, answered: int
) -> None:
    """One server answers so, whichever it is that is asked first; the others answer 200."""
    first: list[int] = []

    def decide_as(number: int) -> int:
        first.append(number)
        return status if number == first[0] else 200

    for server in servers:
        server.decide = lambda _method, _path, number=server.number: decide_as(number)
    answer = router.request(method, path, b"1", {"X-Amzn-SageMaker-Target-Model": "a.tar.gz"})

    # Envoy says 503 where HAProxy says 502 of a server that did not answer.
    assert answer.status == answered or (answered == 502 and router.engine == "envoy" and answer.status == 503)
    assert len(first) == (2 if answered == 200 else 1)


def test_a_killed_server_costs_no_request(router: Router, servers: list[Stand]) -> None:
    """Neither predictions nor MMS's routes: no connection comes about."""
    before = {model: router.home(model) for model in MODELS}
    servers[2].kill()
    try:
        after = {model: router.home(model) for model in MODELS}
        statuses = {router.request("POST", f"/predictions/m{number}").status for number in range(30)}
    finally:
        servers[2].start()
    router.wait_for(3)

    assert statuses == {200}
    assert moved(before, after, but="2") <= MOST_MOVED[router.engine]


def test_all_that_is_signed_arrives_as_it_was_sent(router: Router, servers: list[Stand]) -> None:
    headers = {
        "Host": "models.example.com:8080", "X-Amz-Date": "20260101T000000Z", "Authorization": "AWS4-HMAC-SHA256 x",
        "X-Amzn-SageMaker-Target-Model": "a b/ä.tar.gz".encode().decode("latin-1"),
    }  # fmt: skip
    path = "/endpoints/na%2Dme//../x/invocations?b=%20&a=1"
    number = int(router.request("POST", path, b"1", headers).text)

    assert servers[number].asked == [path]
    seen = {name.lower(): value for name, value in servers[number].seen.items()}
    assert {name.lower(): value for name, value in headers.items()}.items() <= seen.items()


def test_without_any_server_the_answer_is_one_that_clients_repeat(router: Router, servers: list[Stand]) -> None:
    for server in servers:
        server.is_ready = False
    router.wait_for(0)
    answer = router.invoke("a.tar.gz")
    ready = router.engine != "haproxy" or _ready(router)
    for server in servers:
        server.is_ready = True
    router.wait_for(3)

    assert answer.status == 503
    if router.engine == "haproxy":
        assert answer.fields["x-amzn-errortype"] == "ServiceUnavailable"
        assert answer.fields["retry-after"] == "1"
        assert "No server is ready" in answer.json()["Message"]
        assert not ready
        assert _ready(router)


def _ready(router: Router) -> bool:
    return request(router.metrics_port, "GET", "/ready").status == 200


def test_servers_are_asked_by_https_and_must_be_known(engine: str, tmp_path: Path) -> None:
    """With their certificate's issuer; where another is named, none of them is asked."""
    (tmp_path / "other").mkdir()
    own, other = certify(tmp_path), certify(tmp_path / "other")
    with stands(2, own) as secret:
        with start(engine, tmp_path, secret, f"--server-ca={own / 'tls.crt'}", *never_hot(engine)) as router:
            answers = {router.home(model) for model in MODELS[:40]}
        ports = [server.port for server in secret]
        distrusting = Router(engine, tmp_path, ports, f"--server-ca={other / 'tls.crt'}")
        try:
            distrusting.wait_for(0)
            # Envoy sends nothing before its first check, either.
            while engine == "envoy" and "health_check.failure: 0" in distrusting.told(
                "/stats?filter=health_check.fail"
            ):
                time.sleep(0.05)
            status = distrusting.invoke("a.tar.gz").status
        finally:
            distrusting.stop()

    assert answers == {"0", "1"}
    assert status == 503


def test_a_hot_model_gets_copies_and_others_none(servers: list[Stand], tmp_path: Path) -> None:
    """From 10 requests/s on a copy more: some hundred/s are for as many as there are servers, and all take turns."""
    require("haproxy")
    with start("haproxy", tmp_path, servers, "--copy-at=10") as router:
        cold = [router.home("cold.tar.gz") for _ in range(20)]
        for _ in range(200):
            router.home("hot.tar.gz")
        hot = Counter(router.home("hot.tar.gz") for _ in range(300))
        cold += [router.home("cold.tar.gz") for _ in range(10)]
        mms = {router.request("POST", "/predictions/hot").text for _ in range(300)}
        exposed = router.told("/metrics")

    assert len(set(cold)) == 1
    assert all(hot[str(number)] >= 60 for number in range(3)), hot
    assert len(mms) == 1, "what MMS's API has loaded is at one server"
    assert 'haproxy_server_http_responses_total{proxy="predictions",server="polyhost-0",code="2xx"}' in exposed
