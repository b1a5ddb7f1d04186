"""A server without access control, as other sites' pages would use a browser against it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.endpoint import EndpointServer
from support.server import Answer

FOREIGN = ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Host": "evil.example"})
INVOKE = "/endpoints/polyhost/invocations"
TELLS_OR_CHANGES = (
    ("POST", INVOKE), ("GET", INVOKE), ("POST", "/invocations"), ("POST", "/models/a/invoke"), ("GET", "/models"),
    ("POST", "/models?url=/nowhere&model_name=a&handler=os:abort"), ("DELETE", "/models/a"), ("PUT", "/models/a"),
    ("POST", "/"), ("POST", "/refresh"), ("GET", "/dashboard/state"), ("POST", "/dashboard/login"),
    ("GET", "/api-description"), ("OPTIONS", "/"), ("GET", "/nowhere"),
)  # fmt: skip
OPEN = (("GET", "/ping"), ("GET", "/metrics"), ("GET", "/"), ("HEAD", "/"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointServer]:
    folder = tmp_path_factory.mktemp("browsers") / "models"
    folder.mkdir()
    server = EndpointServer("native", folder, "--allowed-origin", "https://models.example")
    yield server
    assert server.stop() == 0, server.process.log


def ask(server: EndpointServer, route: tuple[str, str], **headers: str) -> Answer:
    return server.request(*route, b"" if route[0] == "POST" else None, **headers)


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: next(iter(headers)))
@pytest.mark.parametrize("route", TELLS_OR_CHANGES, ids=" ".join)
def test_other_sites_can_do_and_learn_nothing(
    server: EndpointServer, route: tuple[str, str], headers: dict[str, str]
) -> None:
    answer = ask(server, route, **headers)
    assert answer.status == 403
    assert answer.fields["x-amzn-errortype"] == "AccessDeniedException"
    assert "--allowed-origin" in answer.json()["Message"]


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: next(iter(headers)))
@pytest.mark.parametrize("route", OPEN, ids=" ".join)
def test_what_is_for_everybody_stays_so(
    server: EndpointServer, route: tuple[str, str], headers: dict[str, str]
) -> None:
    assert ask(server, route, **headers).status == 200


@pytest.mark.parametrize("route", TELLS_OR_CHANGES, ids=" ".join)
def test_others_are_asked_nothing(server: EndpointServer, route: tuple[str, str]) -> None:
    """Neither clients that are no browsers, nor the server's own page, nor that of the proxy that is named."""
    own: list[dict[str, str]] = [{}, {"Origin": server.url}, {"Origin": "https://models.example"}]
    for headers in own:
        assert "--allowed-origin" not in ask(server, route, **headers).text
