"""The server's certificate, as its files have it now."""

from __future__ import annotations

import itertools
import logging
import re
import ssl
import threading
import time
from pathlib import Path
from typing import NamedTuple

from polyhost.errors import InvalidSetting

logger = logging.getLogger("polyhost")

# How often a new connection may look whether the files have changed.
_LOOK_SECS = 10.0
_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_PEM_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
# X509_V_FLAG_NO_CHECK_TIME, which the module ssl has no name for.
_NO_CHECK_TIME = 0x200000


class Unusable(Exception):
    """A sentence says why the files are of no use."""


class Dates(NamedTuple):
    """When a certificate is valid, as `time.time()`."""

    begin: float
    end: float

    def fault(self, now: float) -> str | None:
        """Why clients refuse it now."""
        if now < self.begin:
            return f"it is not valid before {_as_text(self.begin)}; here it is {_as_text(now)}"
        if now > self.end:
            return f"it has expired on {_as_text(self.end)}; here it is {_as_text(now)}"
        return None


class Pem(NamedTuple):
    """What the files hold."""

    key: bytes
    certificate: bytes


class Pair(NamedTuple):
    """A certificate with its key. `dates`: None where they cannot be told."""

    context: ssl.SSLContext
    dates: Dates | None
    pem: Pem

    def fault(self) -> str | None:
        return self.dates.fault(time.time()) if self.dates else None


class Certificate:
    """
    What new connections are secured with.

    A certificate is renewed while the server runs: its files are read again where they have changed. Files that do
    not go together, as halfway through a renewal, and certificates that are not valid now, change nothing: they are
    read again until they do. The first one is used as it is: the clock may be wrong, and there is no other.
    """

    def __init__(self, cert: Path, key: Path | None) -> None:
        """Raises InvalidSetting."""
        self._cert, self._key = cert, key
        # The files' state when they were read.
        self._stamp = self._stamp_now()
        self._looked_at = time.monotonic()
        self._warned: set[str] = set()
        # gRPC's threads ask for it, too.
        self._looking = threading.Lock()
        try:
            self._used = read_pair(cert, key)
        except Unusable as error:
            raise InvalidSetting(f"--tls-cert {cert}: no certificate with its key: {error}.") from error
        self._warn_of_dates()

    def context(self) -> ssl.SSLContext:
        return self._current().context

    def pem(self) -> Pem:
        """The same pair, for libraries that have TLS of their own."""
        return self._current().pem

    def look(self) -> None:
        """Now, whenever the files were looked at before."""
        with self._looking:
            self._looked_at = time.monotonic()
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._renew(stamp)
            self._warn_of_dates()

    def _current(self) -> Pair:
        if time.monotonic() - self._looked_at >= _LOOK_SECS:
            self.look()
        return self._used

    def _renew(self, stamp: object) -> None:
        try:
            pair = read_pair(self._cert, self._key)
        except Unusable as error:
            fault: str | None = str(error)
        else:
            fault = pair.fault()
        if fault is not None:
            self._warn(f"the certificate was not renewed: {self._cert} has no certificate with its key", fault)
            return
        self._used, self._stamp = pair, stamp
        self._warned.clear()
        logger.info("the certificate was renewed: %s has changed", self._cert)

    def _warn_of_dates(self) -> None:
        fault = self._used.fault()
        if fault is not None:
            self._warn(f"clients refuse the certificate {self._cert}", fault)

    def _warn(self, what: str, fault: str) -> None:
        """Once, however often it is looked at."""
        kind = f"{what}: {fault.partition(';')[0]}"
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s: %s", what, fault)

    def _stamp_now(self) -> object:
        """Another one when a file was written, replaced or removed."""
        return tuple(_stamp_of(path) for path in (self._cert, self._key) if path is not None)


def read_pair(cert: Path, key: Path | None) -> Pair:
    """Raises Unusable."""
    pem = _pem(cert, key or cert)
    first = _first_certificate(pem, cert, key or cert)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password=_refuse_pass_phrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Unusable(f"the first certificate of {cert} is not the key's: put the server's own first") from error
        raise Unusable(str(error)) from error
    except OSError as error:
        raise Unusable(str(error)) from error
    return Pair(context, _dates_of(context, first), pem)


def _pem(cert: Path, key: Path) -> Pem:
    """Raises Unusable."""
    try:
        certificate = cert.read_bytes()
        return Pem(key.read_bytes(), certificate)
    except OSError as error:
        raise Unusable(f"{error.filename} cannot be read: {error.strerror}") from error


def _first_certificate(pem: Pem, cert: Path, key: Path) -> str:
    """In PEM. Raises Unusable where one of the files lacks what it is for."""
    certificate = _PEM_CERTIFICATE.search(pem.certificate)
    if certificate is None:
        raise Unusable(f"{cert} holds no certificate in PEM")
    if _PEM_KEY.search(pem.key) is None:
        raise Unusable(f"{key} holds no key in PEM")
    return certificate[0].decode("latin-1")


def _refuse_pass_phrase() -> str:
    """Called where the key needs one: a server has nobody to ask, and must not wait for it."""
    raise Unusable("the key has a pass phrase: write it without one")


def _dates_of(context: ssl.SSLContext, certificate: str) -> Dates | None:
    """
    When it is valid, as a client sees it that trusts this certificate alone. None where clients refuse it anyhow.

    The module ssl tells what is in a certificate only to those who have checked it.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client.load_verify_locations(cadata=certificate)
        ends = client.wrap_bio(to_client, to_server), context.wrap_bio(to_server, to_client, server_side=True)
        _shake_hands(*ends)
        told = ends[0].getpeercert() or {}
        return Dates(*(float(ssl.cert_time_to_seconds(str(told[name]))) for name in ("notBefore", "notAfter")))
    except (OSError, ValueError, KeyError):
        return None


def _shake_hands(client: ssl.SSLObject, server: ssl.SSLObject) -> None:
    """Raises OSError."""
    for end in itertools.chain.from_iterable(itertools.repeat((client, server), 4)):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue


def _as_text(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def _stamp_of(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return status.st_ino, status.st_size, status.st_mtime_ns
