"""What is asked of a request where nobody says who he is: from which page it comes, and how often its address calls."""

from __future__ import annotations

from polyhost.api.http import Request
from polyhost.api.origins import Origins, why_foreign
from polyhost.api.routes import Guard, Route
from polyhost.endpoint.access.throttle import Throttle, site_of
from polyhost.http_limits import Rate
from polyhost.service_errors import AccessDenied

# Addresses are too many, and too easy to have, for numbers of their own.
ADDRESSES = "(addresses)"
_COUNTED = (Guard.POLICY, Guard.HANDLER)


class Anybody:
    def __init__(self, origins: Origins, rate: Rate | None, throttle: Throttle) -> None:
        """`rate`: of each address; None for any."""
        self._origins = origins
        self._rate = rate
        self._throttle = throttle

    def require(self, request: Request, route: Route | None) -> None:
        """
        Other sites' pages may not use their readers' browsers to call this server.

        Raises AccessDenied, Throttled.
        """
        reason = why_foreign(request.headers, self._origins)
        if reason is not None and (route is None or not route.is_for_any_page):
            raise AccessDenied(reason)
        if self._rate is not None and (route is None or (route.guard in _COUNTED and route.is_counted)):
            site = site_of(request.peer)
            self._throttle.admit(site, site, self._rate, counted_as=ADDRESSES)
