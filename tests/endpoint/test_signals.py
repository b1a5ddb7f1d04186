"""What answers tell routers and clients besides the answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from polyhost.api.signals import Signals
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.events import ModelLoaded
from polyhost.endpoint.shelf import Shelf
from support.endpoint import EndpointServer

HOUSE = "1998,2150,3,2.5,0.4,2"
SHELF = Shelf(Container(source="/models/"), "/models/", "polyhost", "AllTraffic")


def loaded(download_secs: float, load_secs: float) -> ModelLoaded:
    return ModelLoaded(SHELF, "m.tar.gz", download_secs, load_secs)


@pytest.mark.parametrize(
    ("name", "status", "was_hit", "lines"),
    [
        (None, 200, True, b""),
        (None, 424, False, b""),
        (None, 429, False, b"retry-after: 1\r\n"),
        (None, 503, None, b"retry-after: 1\r\n"),
        ("one", 200, True, b"x-polyhost-server: one\r\nx-polyhost-loaded: hit\r\n"),
        ("one", 424, False, b"x-polyhost-server: one\r\nx-polyhost-loaded: miss\r\n"),
        ("one", 400, None, b"x-polyhost-server: one\r\n"),
        ("one", 429, False, b"x-polyhost-server: one\r\nx-polyhost-loaded: miss\r\nretry-after: 1\r\n"),
    ],
)
def test_what_an_answer_says(name: str | None, status: int, was_hit: bool | None, lines: bytes) -> None:
    assert Signals(name).lines(status, was_hit) == lines


@pytest.mark.parametrize(
    ("loads", "secs"),
    [
        ([(0.0, 0.01)], 1),
        ([(1.5, 0.7)], 3),
        ([(0.0, 2.0)], 2),
        ([(300.0, 20.0)], 60),
        ([(0.0, 10.0), (0.0, 0.0)], 9),  # the newest counts for a tenth
    ],
)
def test_a_client_is_asked_to_wait_for_as_long_as_loads_take(loads: list[tuple[float, float]], secs: int) -> None:
    """In whole seconds, one at least, a minute at most."""
    signals = Signals(None)
    for load in loads:
        signals.loaded(loaded(*load))

    assert signals.lines(429, was_hit=None) == b"retry-after: %d\r\n" % secs


def test_a_named_server_says_who_it_is(samples_folder: Path) -> None:
    """In its answers and to its dashboard; a client that leaves out the model is told, too."""
    # A load may take long on a slow machine, and is a miss again for whoever asks meanwhile.
    patient = ("--model-ready-timeout-secs", "170")
    server = EndpointServer("native", samples_folder, "--server-name", "polyhost-7", *patient)
    try:
        own = [
            server.request(
                "POST", "/endpoints/polyhost/invocations", HOUSE, Content_Type="text/csv",
                X_Amzn_SageMaker_Target_Model=target,
            ).fields
            for target in ("houston.tar.gz", "houston.tar.gz", "nothing.tar.gz")
        ]  # fmt: skip
        assert [fields["x-polyhost-server"] for fields in own] == ["polyhost-7"] * 3
        assert [fields.get("x-polyhost-loaded") for fields in own] == ["miss", "hit", None]
        assert server.request("GET", "/dashboard/state").json()["server"]["name"] == "polyhost-7"
    finally:
        assert server.stop() == 0, server.process.log
