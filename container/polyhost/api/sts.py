"""
STS, as far as an endpoint's clients ask it: who am I, and the credentials of a role.

The query protocol: a form comes, XML goes. Codes and texts are AWS's, so that boto3 raises what it raises there.
"""

from __future__ import annotations

import base64
import logging
import re
import secrets
import time
from collections.abc import Mapping
from datetime import datetime, timezone

from polyhost.api import query
from polyhost.api.http import Reply, Request
from polyhost.endpoint.access import Access, Caller, Credentials
from polyhost.service_errors import EndpointError, ValidationError

logger = logging.getLogger("polyhost.api")

_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
_VERSION = "2011-06-15"
_VERSION_OF_IAM = b"Version=2010-05-08"
_ACTIONS = ("AssumeRole", "GetCallerIdentity")
_MOST_FIELDS = 100
_DEFAULT_DURATION_SECS = "3600"
# An ExternalId is taken and not looked at: no role here asks for one.
_OF_ASSUME_ROLE = frozenset(
    ("Action", "Version", "RoleArn", "RoleSessionName", "DurationSeconds", "Policy", "ExternalId"),
)
# A role's path, such as that of SageMaker's own execution roles, is not part of its sessions' names.
_ROLE_ARN = re.compile(r"arn:aws:iam::([0-9]{12}):role/(?:[\x21-\x7e]{0,510}/)?([A-Za-z0-9_+=,.@-]{1,64})")
_SESSION = re.compile(r"([0-9]{12})/([A-Za-z0-9_+=,.@-]{1,64})/([A-Za-z0-9_+=,.@-]{1,64})")
_EVERYBODYS_ROLE, _EVERYBODYS_SESSION = "polyhost", "anybody"


class InvalidAction(ValidationError):
    type = "InvalidAction"


class Sts:
    """
    Without `access` nobody is asked: everyone is in a role of `account_id`, as a notebook of SageMaker's is, or in the
    one that was assumed here. A role's credentials open nothing.
    """

    def __init__(self, access: Access | None, account_id: str) -> None:
        self._access = access
        self._account_id = account_id

    def answer(self, request: Request, request_id: str) -> Reply:
        """Raises nothing."""
        try:
            action, fields = self._result(request)
            return query.answer_reply(_NAMESPACE, action, fields, request_id)
        except EndpointError as error:
            return query.error_reply(_NAMESPACE, error, request_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            internal = EndpointError(f"Internal error: the server's log has request {request_id}.")
            return query.error_reply(_NAMESPACE, internal, request_id)

    def refused(self, error: EndpointError, request_id: str) -> Reply:
        return query.error_reply(_NAMESPACE, error, request_id)

    def _result(self, request: Request) -> tuple[str, str]:
        """The action, and what it is answered."""
        # Before the signature, which is for IAM and so would be refused as that of another service.
        if _VERSION_OF_IAM in request.body.split(b"&"):
            raise InvalidAction(
                "There is no IAM here: roles are in the auth file. polyhost add-role copies one from IAM."
            )
        caller = self._caller(request)
        form = query.form_of(request.body, _MOST_FIELDS)
        match form.get("Action"):
            case "GetCallerIdentity":
                fields = self._identity(request, caller)
            case "AssumeRole":
                fields = self._role(caller, form)
            case action:
                raise InvalidAction(
                    f"Could not find operation {action} for version {_VERSION}: there are {', '.join(_ACTIONS)}.",
                )
        return form["Action"], fields

    def _caller(self, request: Request) -> Caller | None:
        if self._access is None:
            return None
        method, path, url_query, headers, body, _ = request
        return self._access.authenticate(method, path, url_query, headers, body, service="sts")

    def _identity(self, request: Request, caller: Caller | None) -> str:
        if caller is not None:
            return _xml(Arn=caller.arn, UserId=caller.user_id, Account=caller.account_id)
        session = _session_in(request.headers.get("x-amz-security-token", ""))
        account_id, role, name = session or (self._account_id, _EVERYBODYS_ROLE, _EVERYBODYS_SESSION)
        return _xml(Arn=_session_arn(account_id, role, name), UserId=_session_id(account_id, name), Account=account_id)

    def _role(self, caller: Caller | None, form: Mapping[str, str]) -> str:
        unknown = sorted(form.keys() - _OF_ASSUME_ROLE)
        if unknown:
            raise ValidationError(f"The parameter {unknown[0][:64]} of AssumeRole is not supported here: leave it out.")
        arn, name = _required(form, "RoleArn"), _required(form, "RoleSessionName")
        duration = form.get("DurationSeconds", _DEFAULT_DURATION_SECS)
        if not re.fullmatch("[0-9]{1,6}", duration):
            raise ValidationError("DurationSeconds is not a number of seconds.")
        if self._access is None or caller is None:
            return _credentials(_unchecked(arn, name, int(duration)))
        return _credentials(self._access.assume_role(caller, arn, name, int(duration), form.get("Policy")))


def _required(form: Mapping[str, str], name: str) -> str:
    if not form.get(name):
        raise ValidationError(f"The parameter {name} is required.")
    return form[name]


def _unchecked(role_arn: str, session_name: str, duration_secs: int) -> Credentials:
    """Credentials of the right form, which this server never checks."""
    match = _ROLE_ARN.fullmatch(role_arn)
    if match is None:
        raise ValidationError("RoleArn is not of the form arn:aws:iam::123456789012:role/NAME.")
    return Credentials(
        access_key_id="ASIA" + secrets.token_hex(8).upper(),
        secret_access_key=secrets.token_hex(20),
        session_token=base64.urlsafe_b64encode(f"{match[1]}/{match[2]}/{session_name}".encode()).decode(),
        expires_at=int(time.time()) + duration_secs,
        arn=_session_arn(match[1], match[2], session_name),
        user_id=_session_id(match[1], session_name),
    )


def _session_in(token: str) -> tuple[str, str, str] | None:
    """The account, role and session that a token of `_unchecked` was made for; None if it is another's."""
    try:
        match = _SESSION.fullmatch(base64.urlsafe_b64decode(token).decode())
    except ValueError:
        return None
    return (match[1], match[2], match[3]) if match else None


def _session_arn(account_id: str, role: str, session_name: str) -> str:
    return f"arn:aws:sts::{account_id}:assumed-role/{role}/{session_name}"


def _session_id(account_id: str, session_name: str) -> str:
    return f"AROA{account_id}:{session_name}"


# XML


def _credentials(credentials: Credentials) -> str:
    expiration = datetime.fromtimestamp(credentials.expires_at, timezone.utc)
    keys = _xml(
        AccessKeyId=credentials.access_key_id,
        SecretAccessKey=credentials.secret_access_key,
        SessionToken=credentials.session_token,
        Expiration=f"{expiration:%Y-%m-%dT%H:%M:%SZ}",
    )
    user = _xml(AssumedRoleId=credentials.user_id, Arn=credentials.arn)
    return f"<Credentials>{keys}</Credentials><AssumedRoleUser>{user}</AssumedRoleUser>"


def _xml(**texts: str) -> str:
    return query.elements(texts)
