"""Who asks, and may they? Principals from a file, signatures of version 4, policies as IAM writes them."""

from polyhost.endpoint.access.gate import HASHED_AT_ONCE_BYTES, LOGIN_SECS, Access
from polyhost.endpoint.access.principals import Caller
from polyhost.endpoint.access.tokens import Credentials

__all__ = ["HASHED_AT_ONCE_BYTES", "LOGIN_SECS", "Access", "Caller", "Credentials"]
