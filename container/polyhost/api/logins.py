"""
Who asks the dashboard, and may they: signatures, logins and their cookie.

Whoever is logged in has a cookie that the browser sends to /dashboard only, and never with other sites' requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

from polyhost.api.http import Request
from polyhost.endpoint.access import HASHED_AT_ONCE_BYTES, LOGIN_SECS, Access, Caller
from polyhost.endpoint.access.api_keys import bearer_of
from polyhost.service_errors import NotAuthenticated, ServiceUnavailable, ValidationError

logger = logging.getLogger("polyhost.dashboard")

_COOKIE = "polyhost-login"
# Wrong logins at the same time, how long each takes, and how many wait for their turn.
_LOGINS_AT_ONCE = 4
_WRONG_LOGIN_SECS = 1.0
_MOST_LOGINS = 32


class NotLoggedIn(NotAuthenticated):
    """The page then asks for a login."""

    status = 401
    type = "MissingAuthenticationTokenException"
    advice = "The dashboard has no login, or an old one. Log in again."


class Logins:
    """`access`: None where everybody may do everything."""

    def __init__(self, access: Access | None) -> None:
        self._access = access
        self._doors = _Doors()

    @property
    def is_locked(self) -> bool:
        return self._access is not None

    async def caller(self, request: Request) -> Caller | None:
        """By a signature, an API key or a login; None where nobody is asked. Raises NotAuthenticated, Throttled."""
        if self._access is None:
            return None
        authorization = request.headers.get("authorization", "")
        if authorization.startswith("AWS4-") or bearer_of(authorization) is not None:
            if len(request.body) > HASHED_AT_ONCE_BYTES:
                return await asyncio.to_thread(_signer, self._access, request)
            return _signer(self._access, request)
        token = _cookie_of(request)
        if not token:
            raise _log_in_first()
        try:
            caller = self._access.logged_in(token)
        except NotAuthenticated as error:
            raise NotLoggedIn(error.type, "This login has ended: log in again.") from error
        if request.method == "POST":  # the page itself asks once a second, which is not the caller's doing
            self._access.admit(caller)
        return caller

    def authorize(
        self, caller: Caller | None, action: str, resource: str = "*", context: Mapping[str, str] | None = None
    ) -> None:
        """Raises AccessDenied."""
        if self._access is None:
            return
        if caller is None:
            raise _log_in_first()
        self._access.authorize(caller, action, resource, context or {})

    def require_locked(self) -> Access:
        """Raises ValidationError."""
        if self._access is None:
            raise ValidationError("There is no access control here: nobody needs to log in.")
        return self._access

    async def log_in(self, access_key_id: str, secret_access_key: str) -> tuple[Caller, bytes]:
        """Who it is, and the header line with the cookie. Raises NotLoggedIn, ServiceUnavailable, AccessDenied."""
        access = self.require_locked()
        async with self._doors.turn():
            try:
                caller, token = access.log_in(access_key_id, secret_access_key)
            except NotAuthenticated as error:
                logger.warning("a login was refused")
                await asyncio.sleep(_WRONG_LOGIN_SECS)
                raise NotLoggedIn(error.type, error.message) from error
        self.authorize(caller, "polyhost:ViewDashboard")
        logger.info("%s has logged in", caller.arn)
        return caller, self._cookie(token, LOGIN_SECS)

    def logged_out(self) -> bytes:
        """The header line that takes the cookie back."""
        return self._cookie("", 0)

    def _cookie(self, token: str, secs: int) -> bytes:
        secure = "; Secure" if self._access is not None and self._access.is_tls else ""
        line = f"set-cookie: {_COOKIE}={token}; Path=/dashboard; Max-Age={secs}; HttpOnly; SameSite=Strict{secure}\r\n"
        return line.encode()


class _Doors:
    """Limits on guessing: few logins are checked at the same time, and not many may queue."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_LOGINS_AT_ONCE)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises ServiceUnavailable."""
        if self._waiting >= _MOST_LOGINS:
            raise ServiceUnavailable("Too many are trying to log in. Try again in a minute.")
        self._waiting += 1
        try:
            async with self._places:
                yield
        finally:
            self._waiting -= 1


def name_of(caller: Caller) -> str:
    return caller.arn.rpartition("/")[2]


def _signer(access: Access, request: Request) -> Caller:
    method, path, query, headers, body, _ = request
    return access.authenticate(method, path, query, headers, body, service="sagemaker")


def _log_in_first() -> NotLoggedIn:
    return NotLoggedIn("MissingAuthenticationTokenException", "Log in with an access key of this server.")


def _cookie_of(request: Request) -> str:
    for pair in request.headers.get("cookie", "").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == _COOKIE:
            return value
    return ""
