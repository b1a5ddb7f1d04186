"""Clients over TLS: the limits of HTTP hold for them, slow ones get their whole answer, and certificates change."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from polyhost import certificate
from polyhost.api import door
from polyhost.api.http import Reply
from polyhost.certificate import Certificate
from polyhost.errors import InvalidSetting
from polyhost.http_limits import HttpLimits
from support.clock import FairClock
from support.fronts import front
from support.tree import wait_until

PING = b"GET /ping HTTP/1.1\r\nHost: here\r\n\r\n"
LARGE_BYTES = 6_000_000


def make_certificate(folder: Path) -> Path:
    """The folder, which has cert.pem and key.pem then."""
    folder.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "pair")


@contextlib.contextmanager
def secured(pair: Path, limits: HttpLimits | None = None, body: bytes = b"ok") -> Iterator[int]:
    """The port of a front that speaks TLS."""
    cert = Certificate(pair / "cert.pem", pair / "key.pem")
    with front(lambda _: Reply(body, 200, ()), limits, cert.context) as url:
        yield int(url.rpartition(":")[2])


def plain(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=120)


def tls(port: int, pair: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=pair / "cert.pem")
    return context.wrap_socket(plain(port), server_hostname="localhost")


def all_of(client: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65_536):
            received += data
    return bytes(received)


@pytest.mark.parametrize("fields", [b"", b"Connection: close\r\n"])
def test_a_slow_client_gets_all_of_its_answer(fields: bytes, pair: Path) -> None:
    """It takes longer than a connection may be idle, and than one that closes is waited for, but it reads."""
    with (
        secured(pair, HttpLimits(keep_alive_secs=3), bytes(LARGE_BYTES)) as port,
        plain(port) as raw,
    ):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        context = ssl.create_default_context(cafile=pair / "cert.pem")
        with context.wrap_socket(raw, server_hostname="localhost") as client:
            client.sendall(b"GET / HTTP/1.1\r\n" + fields + b"\r\n")
            received, pause = 0, threading.Event()
            begun = time.monotonic()
            while received < LARGE_BYTES and (data := client.recv(400_000)):
                received += len(data)
                pause.wait(0.012)
            assert received > LARGE_BYTES
            assert time.monotonic() - begun > 4


def test_a_client_that_does_not_read_its_answer_is_let_go(pair: Path) -> None:
    with secured(pair, HttpLimits(keep_alive_secs=1), bytes(5 * LARGE_BYTES)) as port, tls(port, pair) as client:
        client.sendall(PING)
        assert client.recv(1)
        mine = client.getsockname()
        wait_until(lambda: not is_connected_to(mine), 60, "the server has closed its socket")
        assert len(all_of(client)) < 5 * LARGE_BYTES


def is_connected_to(client: tuple[str, int]) -> bool:
    """Whether a socket of this process, in which the server runs, has this address at its other end."""
    return any(tuple(one.raddr) == client for one in psutil.Process().net_connections("tcp"))


def is_answered(port: int, pair: Path) -> bool:
    with contextlib.suppress(OSError), tls(port, pair) as client:
        client.sendall(PING)
        return client.recv(1000).startswith(b"HTTP/1.1 200 ")
    return False


def test_handshakes_count_as_connections_and_have_the_time_of_a_header(pair: Path) -> None:
    with secured(pair, HttpLimits(max_connections=5, header_timeout_secs=1)) as port, contextlib.ExitStack() as opened:
        silent = [opened.enter_context(plain(port)) for _ in range(5)]
        for number, client in enumerate(silent):
            client.sendall(b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"[: number * 3])
        with plain(port) as further:
            assert all_of(further) == b""  # at once: there is no room
        assert [all_of(client) for client in silent] == [b""] * 5
        # A client sees the end of its connection an instant before the server has counted it.
        wait_until(lambda: is_answered(port, pair), 60, "there is room again")


@pytest.mark.parametrize(
    "data", [PING, b"\x16\x03\x01\x00\xc8" + b"a" * 200, bytes(10_000), b"\x15\x03\x03\x00\x02\x02\x28"]
)
def test_what_is_no_handshake_harms_nobody_else(data: bytes, pair: Path) -> None:
    with secured(pair) as port:
        for _ in range(20):
            with plain(port) as client:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                assert b"HTTP" not in all_of(client)
        with tls(port, pair) as client:
            client.sendall(PING)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 1_000_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 1_000_000, b"414"),
        (b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n" + bytes(9_000_000), b"413"),
        (b"GET / HTT", b"408"),
        (b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc", b"408"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na", b"408"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_the_limits_of_http_hold_and_are_told(data: bytes, status: bytes, pair: Path) -> None:
    """The client is told at once that nothing more comes, though it may still be sending."""
    limits = HttpLimits(header_timeout_secs=1, body_timeout_secs=1) if status == b"408" else HttpLimits()
    with secured(pair, limits) as port, tls(port, pair) as client:
        clock = FairClock(os.getpid())
        begun = clock()
        with contextlib.suppress(OSError):
            client.sendall(data)
        assert all_of(client).startswith(b"HTTP/1.1 " + status)
        assert clock() - begun < 4


def test_bodies_and_pipelined_requests_come_whole(pair: Path) -> None:
    cert = Certificate(pair / "cert.pem", pair / "key.pem")
    with (
        front(lambda request: Reply(request.body[::-1], 200, ()), tls=cert.context) as url,
        tls(int(url.rpartition(":")[2]), pair) as client,
    ):
        body = bytes(range(256)) * 20_000
        close = b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab" * 500 + close + body)
        received = all_of(client)
    assert received.count(b"\r\n\r\nba") == 500
    assert received.endswith(body[::-1])


def test_without_descriptors_clients_wait_until_there_are_some(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [errno.EMFILE, errno.ENFILE, errno.ENOMEM]
    accept = socket.socket.accept

    def refusing(self: socket.socket) -> object:
        if refusals:
            raise OSError(refusals.pop(), "no more")
        return accept(self)

    monkeypatch.setattr(door.socket.socket, "accept", refusing)
    with secured(pair) as port, tls(port, pair) as client:
        client.sendall(PING)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert refusals == []


# Certificates that are renewed


@pytest.fixture
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "_LOOK_SECS", 0.0)


def shown(port: int) -> bytes:
    """The certificate that a client is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(plain(port)) as client:
        return client.getpeercert(binary_form=True) or b""


def test_a_renewed_certificate_is_shown_without_a_restart(
    tmp_path: Path, pair: Path, looks_each_time: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of a renewal changes nothing, and who is connected stays so."""
    used, other = make_certificate(tmp_path / "used"), pair
    caplog.set_level(logging.INFO, "polyhost")
    with secured(used) as port:
        old = shown(port)
        with tls(port, used) as client:
            (used / "cert.pem").write_bytes((other / "cert.pem").read_bytes())
            assert shown(port) == old
            assert "was not renewed" in caplog.text
            (used / "key.pem").unlink()
            assert shown(port) == old
            (used / "key.pem").write_bytes((other / "key.pem").read_bytes())
            new = shown(port)
            assert new != old
            assert new == ssl.PEM_cert_to_DER_cert((other / "cert.pem").read_text())
            assert "was renewed" in caplog.text
            client.sendall(PING)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


def shown_by(pair: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert((pair / "cert.pem").read_text())


# Certificates that are of no use

DAY_SECS = 24 * 3600


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_dated(folder: Path, begin_days: int, end_days: int) -> Path:
    """As `make_certificate`, valid from so many days after today until so many."""
    make_certificate(folder)
    openssl(folder, "req", "-new", "-key", "key.pem", "-subj", "/CN=localhost", "-out", "request.pem")
    (folder / "index.txt").touch()
    (folder / "serial").write_text("01")
    (folder / "settings").write_text(
        "[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\n"
        "policy=any\n[any]\ncommonName=supplied\n"
    )
    begin, end = (
        time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + days * DAY_SECS)) for days in (begin_days, end_days)
    )
    openssl(folder, "ca", "-batch", "-config", "settings", "-selfsign", "-keyfile", "key.pem", "-in", "request.pem",
            "-startdate", begin, "-enddate", end, "-notext", "-out", "cert.pem")  # fmt: skip
    return folder


def write_expired(folder: Path, _: Path) -> None:
    make_dated(folder, -20, -10)


def write_future(folder: Path, _: Path) -> None:
    make_dated(folder, 10, 20)


def write_foreign_key(folder: Path, other: Path) -> None:
    make_certificate(folder)
    (folder / "key.pem").write_bytes((other / "key.pem").read_bytes())


def write_chain_first(folder: Path, other: Path) -> None:
    """Its issuer's certificate before its own, as `cat ca.pem cert.pem` makes it."""
    make_certificate(folder)
    (folder / "cert.pem").write_bytes((other / "cert.pem").read_bytes() + (folder / "cert.pem").read_bytes())


def write_pass_phrase(folder: Path, _: Path) -> None:
    make_certificate(folder)
    openssl(folder, "pkey", "-in", "key.pem", "-aes256", "-passout", "pass:secret", "-out", "locked.pem")
    (folder / "locked.pem").replace(folder / "key.pem")


def write_no_key(folder: Path, _: Path) -> None:
    make_certificate(folder)
    (folder / "key.pem").write_bytes((folder / "cert.pem").read_bytes())


def write_der(folder: Path, _: Path) -> None:
    make_certificate(folder)
    (folder / "cert.pem").write_bytes(shown_by(folder))


def write_half(folder: Path, _: Path) -> None:
    make_certificate(folder)
    (folder / "cert.pem").write_bytes((folder / "cert.pem").read_bytes()[:200])


Write = Callable[[Path, Path], None]
DATED = [(write_expired, "it has expired on 20"), (write_future, "it is not valid before 20")]
BROKEN = [
    (write_foreign_key, "is not the key's"),
    (write_chain_first, "is not the key's: put the server's own first"),
    (write_pass_phrase, "the key has a pass phrase"),
    (write_no_key, "holds no key in PEM"),
    (write_der, "holds no certificate in PEM"),
    (write_half, "holds no certificate in PEM"),
]


@pytest.mark.parametrize(("write", "fault"), BROKEN)
def test_files_that_are_no_pair_are_an_error_in_words(write: Write, fault: str, tmp_path: Path, pair: Path) -> None:
    write(tmp_path / "pair", pair)
    with pytest.raises(InvalidSetting, match=rf"^--tls-cert .*: no certificate with its key: .*{fault}"):
        Certificate(tmp_path / "pair" / "cert.pem", tmp_path / "pair" / "key.pem")


def test_no_files_are_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"--tls-cert .*: no certificate with its key: .* cannot be read: No such"):
        Certificate(tmp_path / "none.pem", None)


@pytest.mark.parametrize(("write", "fault"), DATED)
def test_the_first_certificate_is_used_whatever_its_dates(
    write: Write, fault: str, tmp_path: Path, looks_each_time: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The clock may be wrong, and there is no other one. It is said once."""
    write(tmp_path / "pair", tmp_path)
    with secured(tmp_path / "pair") as port:
        assert shown(port) == shown(port) == shown_by(tmp_path / "pair")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"clients refuse the certificate {tmp_path / 'pair' / 'cert.pem'}: {fault}" in caplog.text


@pytest.mark.parametrize(("write", "fault"), [*BROKEN, *DATED])
def test_a_renewal_that_is_of_no_use_changes_nothing(
    write: Write, fault: str, tmp_path: Path, pair: Path, looks_each_time: None, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once. The next one is used."""
    used = make_certificate(tmp_path / "used")
    old = shown_by(used)
    with secured(used) as port:
        assert shown(port) == old
        write(tmp_path / "new", pair)
        for name in ("key.pem", "cert.pem"):
            (tmp_path / "new" / name).replace(used / name)
        assert shown(port) == shown(port) == old
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert re.search(
            rf"the certificate was not renewed: .* has no certificate with its key: .*{fault}", caplog.text
        )
        for name in ("key.pem", "cert.pem"):
            (used / name).write_bytes((pair / name).read_bytes())
        assert shown(port) == shown_by(pair)


def test_a_certificate_that_is_renewed_too_early_is_used_from_its_first_day_on(
    tmp_path: Path, looks_each_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, new = make_dated(tmp_path / "used", -10, 20), make_dated(tmp_path / "new", 10, 30)
    old, later = shown_by(used), shown_by(new)
    with secured(used) as port:
        for name in ("key.pem", "cert.pem"):
            (new / name).replace(used / name)
        assert shown(port) == old
        today = time.time()
        monkeypatch.setattr(certificate.time, "time", lambda: today + 11 * DAY_SECS)
        assert shown(port) == later


def test_a_certificate_that_expires_while_it_is_used_is_told(
    tmp_path: Path, looks_each_time: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    used = make_dated(tmp_path / "used", -10, 20)
    with secured(used) as port:
        shown(port)
        assert not caplog.records
        today = time.time()
        for days in (21, 22):
            monkeypatch.setattr(certificate.time, "time", lambda days=days: today + days * DAY_SECS)
            assert shown(port) == shown_by(used)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "clients refuse the certificate" in caplog.text
