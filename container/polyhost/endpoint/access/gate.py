"""
Who asks, and may they: the one place where a request becomes a caller and a caller is let through or not.

The file of principals is read again when it has changed, which is looked at when a request comes, at most once a
second. A file that cannot be used leaves the one before in force.
"""

from __future__ import annotations

import dataclasses
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from polyhost.endpoint.access.policy import Context, Rules, Verdict, decide, read_policy
from polyhost.endpoint.access.principals import Caller, Principals, read_principals
from polyhost.endpoint.access.signature import check_scope, check_signature, claim_of
from polyhost.endpoint.access.tokens import (
    SESSION_PREFIX,
    Credentials,
    Session,
    opened,
    opened_login,
    read_or_make_key,
    seal,
    seal_login,
)
from polyhost.endpoint.errors import AccessDenied, NotAuthenticated, ValidationError
from polyhost.errors import InvalidSetting

logger = logging.getLogger("polyhost.access")

LOGIN_SECS = 8 * 3600
_LOOK_EVERY_SECS = 1
# AWS's limits for AssumeRole.
_SESSION_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")
_SHORTEST_SESSION_SECS = 900
_LONGEST_SESSION_POLICY = 2048
_MAY_ASSUME = read_policy('{"Statement": {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}}')

# What tells one state of a file from another; None: it cannot be read.
Stamp = tuple[int, int, int] | None


class MalformedPolicy(ValidationError):
    """A session's policy that is none."""

    type = "MalformedPolicyDocument"


class Access:
    """`now` is Unix time. Nothing here waits or raises anything but what its methods name."""

    def __init__(
        self,
        file: Path,
        principals: Principals,
        stamp: Stamp,
        token_key: bytes,
        *,
        region: str,
        is_tls: bool,
        now: Callable[[], float],
    ) -> None:
        self._file = file
        self._principals = principals
        self._stamp = stamp
        self._token_key = token_key
        self._region = region
        self._is_tls = is_tls
        self._now = now
        self._looked_at = now()

    @classmethod
    def read(
        cls,
        file: Path,
        *,
        region: str,
        secret_folder: Path,
        is_tls: bool = False,
        now: Callable[[], float] = time.time,
    ) -> Access:
        """
        `secret_folder` is where the key that signs session tokens is kept; `is_tls` is `aws:SecureTransport`.

        Raises InvalidSetting.
        """
        principals, stamp = _read(file)
        return cls(file, principals, stamp, read_or_make_key(secret_folder), region=region, is_tls=is_tls, now=now)

    def __repr__(self) -> str:
        return f"<Access {self._file} [{_counts(self._principals)}]>"

    @property
    def account_id(self) -> str:
        return self._principals.account_id

    def arn(self, service: str, resource: str) -> str:
        """Of something here, such as `arn("sagemaker", "endpoint/polyhost")`."""
        return f"arn:aws:{service}:{self._region}:{self.account_id}:{resource}"

    # Who asks

    def authenticate(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        service: str,
    ) -> Caller:
        """
        The caller whose signature the request bears.

        `path` as it came, escapes and all; `query` without its question mark; header names in lower case.
        Raises NotAuthenticated.
        """
        self._look_at_the_file()
        claim = claim_of(headers, query)
        timestamp = check_scope(claim, headers, service, self._now())
        secret, caller = self._principal(claim.access_key_id, headers.get("x-amz-security-token"))
        check_signature(claim, timestamp, secret, method, path, query, headers, body)
        return caller

    def is_metrics_token(self, authorization: str) -> bool:
        """Whether `Authorization: Bearer …` brings the file's `metrics_token`; False if the file has none."""
        self._look_at_the_file()
        scheme, _, token = authorization.partition(" ")
        wanted = self._principals.metrics_token
        return scheme.lower() == "bearer" and bool(wanted) and hmac.compare_digest(token.encode(), wanted.encode())

    def _principal(self, access_key_id: str, token: str | None) -> tuple[str, Caller]:
        """The secret that the key's signatures are made with, and whose they are. Raises NotAuthenticated."""
        if access_key_id.startswith(SESSION_PREFIX):
            return self._session(access_key_id, token or "")
        user = self._principals.users.get(access_key_id)
        if user is None or token is not None:
            raise _unrecognized()
        return user.secret_access_key, user.caller

    def _session(self, access_key_id: str, token: str) -> tuple[str, Caller]:
        try:
            session, its_key_id, secret = opened(self._token_key, token)
        except ValueError:
            raise _unrecognized() from None
        role = self._principals.roles.get(session.role_arn)
        # A session ends with the key that it began with: taking a user, or a lost key, out of the file is enough.
        if its_key_id != access_key_id or role is None or session.began_with not in self._principals.users:
            raise _unrecognized()
        if session.expires_at <= self._now():
            raise NotAuthenticated("ExpiredTokenException", "The security token included in the request is expired")
        session_rules = read_policy(session.policy) if session.policy else None
        return secret, role.session(self.account_id, session.name, session.began_with, session_rules)

    # Browsers, which sign nothing

    @property
    def is_tls(self) -> bool:
        return self._is_tls

    def log_in(self, access_key_id: str, secret: str) -> tuple[Caller, str]:
        """
        A user, and the token that stands for the user's key for LOGIN_SECS. Raises NotAuthenticated.

        It takes as long for a user as for none. Whoever calls it makes sure that nobody asks very often.
        """
        self._look_at_the_file()
        user = self._principals.users.get(access_key_id)
        wanted = user.secret_access_key if user else secrets.token_urlsafe(30)
        is_right = hmac.compare_digest(secret.encode(errors="replace"), wanted.encode())
        if user is None or not is_right:
            raise NotAuthenticated("UnrecognizedClientException", "There is no user with this access key and secret.")
        token = seal_login(self._token_key, access_key_id, wanted, int(self._now()) + LOGIN_SECS)
        return user.caller, token

    def logged_in(self, token: str) -> Caller:
        """Who a token of `log_in` stands for, as the file has that user now. Raises NotAuthenticated."""
        self._look_at_the_file()
        users = self._principals.users
        try:
            key_id, expires_at = opened_login(
                self._token_key, token, lambda key_id: users[key_id].secret_access_key if key_id in users else None
            )
        except (ValueError, TypeError, RecursionError):
            raise _unrecognized() from None
        if expires_at <= self._now():
            raise NotAuthenticated("ExpiredTokenException", "The login has expired: log in again.")
        return users[key_id].caller

    # May they

    def authorize(self, caller: Caller, action: str, resource: str, context: Mapping[str, str]) -> None:
        """
        `context` holds what the request itself brings, such as `{"sagemaker:TargetModel": "boston/a.tar.gz"}`.

        A key that the request does not bring is left out. Raises AccessDenied.
        """
        reason = refusal(caller, action, resource, self._context(caller, context))
        if reason is not None:
            raise AccessDenied(_not_authorized(caller, action, resource, reason))

    def _context(self, caller: Caller, given: Mapping[str, str]) -> Context:
        from_request = {key.lower(): value for key, value in given.items()}
        return {**from_request, **caller.keys, "aws:securetransport": "true" if self._is_tls else "false"}

    # Sessions

    def assume_role(
        self,
        caller: Caller,
        role_arn: str,
        session_name: str,
        duration_secs: int,
        policy: str | None,
    ) -> Credentials:
        """
        Raises AccessDenied if the role does not trust the caller, or a policy of the caller forbids it.

        Raises ValidationError if what is asked for cannot be.
        """
        _check_session(session_name, duration_secs)
        session_rules = _session_rules(policy)
        if role_arn not in self._principals.roles:
            # Somebody may have added it this second, as a script does that then goes on.
            self._look_at_the_file(at_once=True)
        role = self._principals.roles.get(role_arn)
        if role is None or not role.trusts(caller):
            reason = "because there is no such role, or its may_be_assumed_by does not list the caller"
            raise AccessDenied(_not_authorized(caller, "sts:AssumeRole", role_arn, reason))
        # The role's list is what allows it: the caller's policies need not, but may forbid it.
        trusted = dataclasses.replace(caller, rules=(*caller.rules, *_MAY_ASSUME))
        self.authorize(trusted, "sts:AssumeRole", role_arn, {})
        if duration_secs > role.max_session_secs:
            raise ValidationError(
                f"The requested DurationSeconds exceeds the MaxSessionDuration set for this role: "
                f"{role.max_session_secs} seconds.",
            )
        expires_at = int(self._now()) + duration_secs
        token = seal(self._token_key, Session(role_arn, session_name, caller.access_key_id, expires_at, policy or ""))
        _, access_key_id, secret = opened(self._token_key, token)
        session = role.session(self.account_id, session_name, caller.access_key_id, session_rules)
        return Credentials(access_key_id, secret, token, expires_at, session.arn, session.user_id)

    # The file

    def _look_at_the_file(self, *, at_once: bool = False) -> None:
        now = self._now()
        # A clock that was put back must not stop the looking.
        if not at_once and abs(now - self._looked_at) < _LOOK_EVERY_SECS:
            return
        self._looked_at = now
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._read_again()

    def _read_again(self) -> None:
        try:
            principals, self._stamp = _read(self._file)
            if principals.account_id != self.account_id:
                raise InvalidSetting(
                    f"{self._file}: account_id changes with a restart only: endpoints are named by it."
                )
        except InvalidSetting as error:
            logger.error("%s What was read before stays in force.", error)  # noqa: TRY400
            return
        self._principals = principals
        logger.info("%s has changed and is in force: %s", self._file, _counts(principals))


def refusal(caller: Caller, action: str, resource: str, context: Context) -> str | None:
    """
    Why not, in AWS's words; None if it is allowed.

    A session that was narrowed may do what both allow; a Deny in either is said first.
    """
    verdicts = [("an identity-based policy", "identity-based", caller.rules)]
    if caller.session_rules is not None:
        verdicts.append(("a session policy", "session", caller.session_rules))
    reasons = []
    for one, kind, rules in verdicts:
        verdict = decide(rules, action, resource, context)
        if verdict is Verdict.DENIED:
            return f"with an explicit deny in {one}"
        if verdict is Verdict.SILENT:
            reasons.append(f"because no {kind} policy allows the {action} action")
    return reasons[0] if reasons else None


def _not_authorized(caller: Caller, action: str, resource: str, reason: str) -> str:
    return f"User: {caller.arn} is not authorized to perform: {action} on resource: {resource} {reason}"


def _unrecognized() -> NotAuthenticated:
    return NotAuthenticated("UnrecognizedClientException", "The security token included in the request is invalid.")


def _check_session(name: str, duration_secs: int) -> None:
    if not _SESSION_NAME.fullmatch(name):
        raise ValidationError("RoleSessionName must have 2 to 64 of the characters A-Z a-z 0-9 _ + = , . @ -")
    if duration_secs < _SHORTEST_SESSION_SECS:
        raise ValidationError(f"DurationSeconds must be at least {_SHORTEST_SESSION_SECS}.")


def _session_rules(policy: str | None) -> Rules | None:
    if policy is None:
        return None
    if not 0 < len(policy) <= _LONGEST_SESSION_POLICY:
        raise MalformedPolicy(f"Policy must have 1 to {_LONGEST_SESSION_POLICY} characters.")
    try:
        return read_policy(policy)
    except ValueError as error:
        raise MalformedPolicy(f"Policy: {error}.") from error


def _read(file: Path) -> tuple[Principals, Stamp]:
    """Raises InvalidSetting."""
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            text = stream.read()
    except OSError as error:
        raise InvalidSetting(f"{file}: {os.strerror(error.errno or 0)}.") from error
    try:
        principals = read_principals(text)
    except ValueError as error:
        raise InvalidSetting(f"{file}: {error}.") from error
    if status.st_mode & stat.S_IRWXO:
        logger.warning("%s holds secrets and is open to every user of this machine: chmod o-rwx", file)
    return principals, _stamp_of(status)


def _stamp(file: Path) -> Stamp:
    try:
        return _stamp_of(file.stat())
    except OSError:
        return None


def _stamp_of(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _counts(principals: Principals) -> str:
    return f"{len(principals.users)} users, {len(principals.roles)} roles"
