"""Files of the operator's that change while the server runs: SIGHUP has all processes look at them at once."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from polyhost import server as servers
from support.endpoint import EndpointServer
from support.principals import document
from support.tree import wait_until
from test_tls import make_certificate, shown, shown_by

CONNECTIONS = 40
NO_ENDPOINTS = "Models: []\n"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Iterator[EndpointServer]:
    """Two fronts over TLS, with access control and a file of endpoints."""
    folder = tmp_path_factory.mktemp("reload")
    (folder / "models").mkdir()
    shutil.copy(samples_folder / "boston.tar.gz", folder / "models")
    make_certificate(folder / "used")
    replace(folder / "principals.json", json.dumps(document()))
    replace(folder / "endpoints.yaml", NO_ENDPOINTS)
    replace(folder / "token.key", "01" * 32)
    replace(folder / "hot.txt", "")
    replace(folder / "polyhost.toml", f'preload = "@{folder}/hot.txt"\nmax-connections = 500\n')
    server = EndpointServer(
        "native", folder / "models", "--fronts", "2", "--auth", "sigv4", "--auth-file", f"{folder}/principals.json",
        "--endpoints", f"{folder}/endpoints.yaml", "--tls-cert", f"{folder}/used/cert.pem",
        "--tls-key", f"{folder}/used/key.pem", "--token-key-file", f"{folder}/token.key",
        "--config", f"{folder}/polyhost.toml",
    )  # fmt: skip
    server.file = folder
    yield server
    assert server.stop() == 0, server.process.log


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    os.replace(new, file)


def hang_up(server: EndpointServer, words: str, times: int = 1) -> None:
    """Send SIGHUP, and wait until the log says this so many times."""
    before = server.process.log.count(words)
    server.process.send(signal.SIGHUP)
    wait_until(lambda: server.process.log.count(words) >= before + times, 120, words)
    assert server.process.log.count(words) == before + times


def all_shown(server: EndpointServer) -> set[bytes]:
    """By so many connections that each front has some."""
    return {shown(server.port) for _ in range(CONNECTIONS)}


def test_all_fronts_show_a_new_certificate_and_none_a_broken_one(locked: EndpointServer, tmp_path: Path) -> None:
    used, other = locked.file / "used", make_certificate(tmp_path / "other")
    old = shown_by(used)
    replace(used / "cert.pem", (other / "cert.pem").read_text())  # halfway: the key is the old one
    hang_up(locked, "the certificate was not renewed", times=2)
    assert all_shown(locked) == {old}
    replace(used / "key.pem", (other / "key.pem").read_text())
    hang_up(locked, "the certificate was renewed", times=2)
    assert all_shown(locked) == {shown_by(other)}


def test_the_auth_file_is_read_before_anybody_calls(locked: EndpointServer) -> None:
    """So that its log says at once whether the new one is in force."""
    file = locked.file / "principals.json"
    replace(file, "{")
    hang_up(locked, "principals.json: Expecting property name enclosed in double quotes")
    assert "What was read before stays in force." in locked.process.log
    one_less = document()
    del one_less["users"][0]
    one_less["roles"] = []
    replace(file, json.dumps(one_less))
    hang_up(locked, "principals.json has changed and is in force: 2 users, 0 roles")


def test_the_file_of_endpoints_is_read_at_once(locked: EndpointServer) -> None:
    file = locked.file / "endpoints.yaml"
    replace(file, "Models: 5\n")
    hang_up(locked, "endpoints.yaml: Models must be a list")
    replace(file, NO_ENDPOINTS + "Endpoints: []\n")
    hang_up(locked, "endpoints.yaml was read again")


def test_the_key_of_sessions_is_read_at_once(locked: EndpointServer) -> None:
    file = locked.file / "token.key"
    replace(file, "short")
    hang_up(locked, "The key that was read before stays in force.")
    replace(file, "02" * 32)
    hang_up(locked, "token.key has changed and signs from now on.")


def test_models_that_are_new_in_the_list_of_preload_are_loaded(locked: EndpointServer) -> None:
    file = locked.file / "hot.txt"
    file.write_bytes(b"\xff")
    hang_up(locked, "is not a text in UTF-8. Write one target a line. What was read before stays in force.")
    replace(file, "boston.tar.gz\n")
    hang_up(locked, "--preload has changed. New in it: 1. May be evicted again: 0.")
    locked.process.wait_for_line("model boston.tar.gz: it is compiled")


def test_settings_that_need_a_restart_are_named(locked: EndpointServer) -> None:
    file = locked.file / "polyhost.toml"
    replace(file, file.read_text().replace("500", "600"))
    hang_up(locked, "the new values of max-connections need a restart")


@pytest.mark.parametrize(
    ("has_terminal", "loses_it", "number", "expected"),
    [
        (False, False, signal.SIGHUP, ["look"]),
        (True, False, signal.SIGHUP, ["look"]),
        (True, True, signal.SIGHUP, ["stop"]),
        (True, True, signal.SIGTERM, ["stop"]),
        (False, False, signal.SIGTERM, ["stop"]),
        (True, False, signal.SIGINT, ["stop"]),
    ],
)
def test_what_a_signal_means(
    has_terminal: bool, loses_it: bool, number: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal that closes has ended servers ever since; nobody else could end one that went on in its place."""
    ours, its = pty.openpty()
    nowhere = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(servers, "_STDIN", its if has_terminal else nowhere)
    loop = asyncio.new_event_loop()
    seen: list[str] = []
    try:
        on_signal = servers._Signals(lambda: seen.append("stop"), lambda: seen.append("look"), loop.create_future())
        if loses_it:
            os.close(ours)
        on_signal(number)
        assert seen == expected
    finally:
        loop.close()
        for descriptor in (its, nowhere, *(() if loses_it else (ours,))):
            os.close(descriptor)


def test_looking_does_not_keep_a_second_signal_from_ending_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGHUP while it stops is no second order to stop."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(servers, "_STDIN", nowhere)
    loop = asyncio.new_event_loop()
    try:
        at_once = loop.create_future()
        on_signal = servers._Signals(lambda: None, lambda: None, at_once)
        for number in (signal.SIGTERM, signal.SIGHUP):
            on_signal(number)
        assert not at_once.done()
        on_signal(signal.SIGTERM)
        assert at_once.result() == 128 + signal.SIGTERM
    finally:
        loop.close()
        os.close(nowhere)
