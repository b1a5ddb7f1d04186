"""Which requests of browsers a server without access control takes: the table of cases, and a server."""

from __future__ import annotations

import pytest
from polyhost.api.origins import Origins, origins_of, why_foreign
from polyhost.config import parse_origin

ANYWHERE = Origins()
HERE_ALONE = Origins(checks_host=True)
BEHIND_PROXY = Origins(frozenset({"https://models.example"}))
HERE_BEHIND_PROXY = Origins(frozenset({"https://models.example"}), checks_host=True)


@pytest.mark.parametrize(
    ("origins", "headers", "passes"),
    [
        # What is no browser says nothing.
        (ANYWHERE, {}, True),
        (ANYWHERE, {"host": "polyhost:8080"}, True),
        (ANYWHERE, {"host": "10.0.0.7"}, True),
        # The server's own page.
        (ANYWHERE, {"host": "here:8080", "origin": "http://here:8080"}, True),
        (ANYWHERE, {"host": "here:8080", "origin": "http://here:8080", "sec-fetch-site": "same-origin"}, True),
        (ANYWHERE, {"host": "Here", "origin": "https://here"}, True),
        (ANYWHERE, {"host": "here:8080", "sec-fetch-site": "none"}, True),
        # Another site's, or another port's of this machine.
        (ANYWHERE, {"host": "here:8080", "origin": "http://evil.example"}, False),
        (ANYWHERE, {"host": "here:8080", "origin": "http://here:8888", "sec-fetch-site": "same-site"}, False),
        (ANYWHERE, {"host": "here:8080", "origin": "http://evil.here:8080"}, False),
        (ANYWHERE, {"host": "here:8080", "origin": "null"}, False),
        (ANYWHERE, {"host": "here:8080", "origin": ""}, False),
        (ANYWHERE, {"host": "here:8080", "origin": "http://[::1"}, False),
        (ANYWHERE, {"origin": "null"}, False),
        (ANYWHERE, {"host": "here:8080", "sec-fetch-site": "cross-site"}, False),
        # A proxy that changes Host.
        (BEHIND_PROXY, {"host": "inner:8080", "origin": "https://models.example"}, True),
        (
            BEHIND_PROXY,
            {"host": "inner:8080", "origin": "https://models.example", "sec-fetch-site": "cross-site"},
            True,
        ),
        (BEHIND_PROXY, {"host": "inner:8080", "origin": "http://models.example"}, False),
        (BEHIND_PROXY, {"host": "inner:8080", "origin": "https://models.example.evil.example"}, False),
        # Names that have been made to point here.
        (HERE_ALONE, {"host": "localhost:8080"}, True),
        (HERE_ALONE, {"host": "LOCALHOST"}, True),
        (HERE_ALONE, {"host": "a.localhost:8080"}, True),
        (HERE_ALONE, {"host": "127.0.0.1:8080"}, True),
        (HERE_ALONE, {"host": "127.1.2.3"}, True),
        (HERE_ALONE, {"host": "[::1]:8080"}, True),
        (HERE_ALONE, {}, True),
        (HERE_ALONE, {"host": "evil.example:8080"}, False),
        (HERE_ALONE, {"host": "evil.example:8080", "origin": "http://evil.example:8080"}, False),
        (HERE_ALONE, {"host": "localhost.evil.example"}, False),
        (HERE_ALONE, {"host": "10.0.0.7:8080"}, False),
        (HERE_ALONE, {"host": "[::1"}, False),
        (ANYWHERE, {"host": "evil.example:8080"}, True),
        (HERE_BEHIND_PROXY, {"host": "models.example"}, True),
        (HERE_BEHIND_PROXY, {"host": "evil.example"}, False),
    ],
)
def test_whose_requests_are_taken(origins: Origins, headers: dict[str, str], passes: bool) -> None:
    assert (why_foreign(headers, origins) is None) is passes


@pytest.mark.parametrize(
    ("host", "is_checked"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.7", False)],
)
def test_the_name_counts_where_only_this_machine_can_call(host: str, is_checked: bool) -> None:
    assert origins_of(host, ()).checks_host is is_checked


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Models.Example/", "https://models.example"),
        ("https://models.example:443", "https://models.example"),
        ("http://models.example:80", "http://models.example"),
        ("http://models.example:8080", "http://models.example:8080"),
    ],
)
def test_an_origin_is_written_as_browsers_do(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize("text", ["models.example", "https://", "https://a/b", "ftp://a", "https://a b", "null", "*"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        parse_origin(text)
