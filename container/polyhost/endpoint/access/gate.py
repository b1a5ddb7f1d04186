"""Who asks, and may they: the one place where a request becomes a caller and a caller is let through or not."""

from __future__ import annotations

import dataclasses
import functools
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from polyhost.endpoint.access.api_keys import bearer_of, hash_of, id_of
from polyhost.endpoint.access.auth_file import AuthFile
from polyhost.endpoint.access.policy import Context, Rules, Verdict, decide, read_policy
from polyhost.endpoint.access.principals import Caller, Role, User
from polyhost.endpoint.access.signature import check_scope, check_signature, claim_of
from polyhost.endpoint.access.signing_key import SigningKey
from polyhost.endpoint.access.throttle import Throttle
from polyhost.endpoint.access.tokens import (
    SESSION_PREFIX,
    Credentials,
    Session,
    opened,
    opened_login,
    seal,
    seal_login,
)
from polyhost.http_limits import Rate
from polyhost.service_errors import AccessDenied, NotAuthenticated, ValidationError

LOGIN_SECS = 8 * 3600
# To check a signature the body is hashed: of more than this, in a thread.
HASHED_AT_ONCE_BYTES = 256 * 1024
# How many decisions are kept, by caller, action, resource and condition keys. A client's names have 1,024 characters
# at most.
_DECISIONS_KEPT = 4096
# AWS's limits for AssumeRole.
_SESSION_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")
_SHORTEST_SESSION_SECS = 900
_LONGEST_SESSION_POLICY = 2048
_MAY_ASSUME = read_policy('{"Statement": {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}}')


class MalformedPolicy(ValidationError):
    """A session's policy that cannot be read as a policy."""

    type = "MalformedPolicyDocument"


class Access:
    """`now` is Unix time. Nothing here waits or raises anything but what its methods name."""

    def __init__(
        self,
        file: AuthFile,
        key: SigningKey,
        *,
        rate: Rate | None,
        throttle: Throttle,
        is_tls: bool,
        now: Callable[[], float],
    ) -> None:
        self._file = file
        self._key = key
        self._rate = rate
        self._throttle = throttle
        self._is_tls = is_tls
        self._now = now
        # A file that has changed brings other callers, for whom nothing has been decided yet.
        self._refusal = functools.lru_cache(_DECISIONS_KEPT)(self._decided)

    @classmethod
    def read(
        cls,
        file: Path,
        *,
        secret_folder: Path,
        token_key_file: Path | None = None,
        rate: Rate | None = None,
        throttle: Throttle | None = None,
        is_tls: bool = False,
        now: Callable[[], float] = time.time,
    ) -> Access:
        """
        `secret_folder` is where the key that signs session tokens is kept, unless it is in `token_key_file`.

        `rate`: of callers of whom the file does not say another. `throttle` counts them.

        `is_tls` is `aws:SecureTransport`.

        Raises InvalidSetting.
        """
        auth_file = AuthFile(file, now)
        throttle = Throttle() if throttle is None else throttle
        key = SigningKey.read(token_key_file, secret_folder, now)
        return cls(auth_file, key, rate=rate, throttle=throttle, is_tls=is_tls, now=now)

    def __repr__(self) -> str:
        return f"<Access {self._file}>"

    @property
    def account_id(self) -> str:
        return self._file.principals.account_id

    def look(self) -> None:
        """At the auth file, whenever it was looked at before, and at the key's."""
        self._file.look(at_once=True)
        self._key.look()

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
        The caller whose signature, or API key, the request bears.

        `path` as it came, escapes and all; `query` without its question mark; header names in lower case. To be called
        once for each request, because it counts them.

        Raises NotAuthenticated, Throttled.
        """
        caller = self._caller(method, path, query, headers, body, service)
        self.admit(caller)
        return caller

    def admit(self, caller: Caller) -> None:
        """Count a request of the caller's. Raises Throttled."""
        rate = caller.rate or self._rate
        if rate is not None:
            # Each key counts for itself, in a role as well; else a role's sessions would be as many callers as names.
            self._throttle.admit((caller.principal_arn, caller.access_key_id), caller.principal_arn, rate)

    def _caller(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, service: str
    ) -> Caller:
        self._file.look()
        api_key = bearer_of(headers.get("authorization", ""))
        if api_key is not None:
            return self._owner(api_key).caller
        claim, signature = claim_of(headers, query)
        timestamp = check_scope(claim, headers, service, self._now())
        secret, caller = self._principal(claim.access_key_id, headers.get("x-amz-security-token"))
        check_signature(
            claim, signature, timestamp, secret, method=method, path=path, query=query, headers=headers, body=body
        )
        return caller

    def is_metrics_token(self, authorization: str) -> bool:
        """Whether `Authorization: Bearer …` brings the file's `metrics_token`; False if the file has none."""
        self._file.look()
        token, wanted = bearer_of(authorization), self._file.principals.metrics_token
        return token is not None and bool(wanted) and hmac.compare_digest(token.encode(), wanted.encode())

    def _owner(self, api_key: str) -> User:
        """
        Raises NotAuthenticated.

        How long the search takes says something of the hash alone, which nobody can choose.
        """
        hashed = hash_of(api_key)
        user = self._file.principals.api_keys.get(id_of(hashed))
        if user is None or not hmac.compare_digest(user.secret, hashed):
            raise _unrecognized()
        return user

    def _principal(self, access_key_id: str, token: str | None) -> tuple[str, Caller]:
        """The secret that the key's signatures are made with, and whose they are. Raises NotAuthenticated."""
        if access_key_id.startswith(SESSION_PREFIX):
            return self._session(access_key_id, token or "")
        user = self._file.principals.users.get(access_key_id)
        if user is None or token is not None:
            raise _unrecognized()
        return user.secret, user.caller

    def _session(self, access_key_id: str, token: str) -> tuple[str, Caller]:
        try:
            session, its_key_id, secret = opened(self._key.accepted, token)
        except ValueError:
            raise _unrecognized() from None
        role = self._file.principals.roles.get(session.role_arn)
        # A session ends with the key that it began with: taking a user, or a lost key, out of the file is enough.
        if its_key_id != access_key_id or role is None or self._file.principals.by_key(session.began_with) is None:
            raise _unrecognized()
        if session.expires_at <= self._now():
            raise NotAuthenticated("ExpiredTokenException", "The security token included in the request is expired")
        return secret, _caller_in(session, role, self.account_id)

    # Browsers, which sign nothing

    @property
    def is_tls(self) -> bool:
        return self._is_tls

    def log_in(self, access_key_id: str, secret: str) -> tuple[Caller, str]:
        """
        A user, and the token that stands for the user's key for LOGIN_SECS. Raises NotAuthenticated.

        `secret`: of the access key, or an API key where `access_key_id` is "". It takes as long for a user as for none.
        Whoever calls it makes sure that nobody asks very often.
        """
        self._file.look()
        user = self._user(access_key_id, secret) if access_key_id else self._owner(secret)
        expires_at = int(self._now()) + LOGIN_SECS
        return user.caller, seal_login(self._key.newest, user.caller.access_key_id, user.secret, expires_at)

    def _user(self, access_key_id: str, secret: str) -> User:
        user = self._file.principals.users.get(access_key_id)
        wanted = user.secret if user else secrets.token_urlsafe(30)
        is_right = hmac.compare_digest(secret.encode(errors="replace"), wanted.encode())
        if user is None or not is_right:
            raise NotAuthenticated("UnrecognizedClientException", "There is no user with this access key and secret.")
        return user

    def logged_in(self, token: str) -> Caller:
        """Who a token of `log_in` stands for, as the file has that user now. Raises NotAuthenticated."""
        self._file.look()
        try:
            key_id, expires_at = opened_login(self._key.accepted, token, self._secret)
        except (ValueError, TypeError, RecursionError):
            raise _unrecognized() from None
        user = self._file.principals.by_key(key_id)
        if user is None:
            raise _unrecognized()
        if expires_at <= self._now():
            raise NotAuthenticated("ExpiredTokenException", "The login has expired: log in again.")
        return user.caller

    def _secret(self, key_id: str) -> str | None:
        user = self._file.principals.by_key(key_id)
        return user.secret if user else None

    # May they

    def authorize(self, caller: Caller, action: str, resource: str, context: Mapping[str, str]) -> None:
        """
        `context` holds what the request itself brings, such as `{"sagemaker:TargetModel": "boston/a.tar.gz"}`.

        A key that the request does not bring is left out. Raises AccessDenied.
        """
        reason = self._refusal(caller, action, resource, tuple(context.items()))
        if reason is not None:
            raise AccessDenied(_not_authorized(caller, action, resource, reason))

    def _decided(self, caller: Caller, action: str, resource: str, given: tuple[tuple[str, str], ...]) -> str | None:
        from_request = {key.lower(): value for key, value in given}
        is_tls = "true" if self._is_tls else "false"
        return refusal(caller, action, resource, {**from_request, **caller.keys, "aws:securetransport": is_tls})

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
        if role_arn not in self._file.principals.roles:
            # Somebody may have added it this second, as a script does that then goes on.
            self._file.look(at_once=True)
        role = self._file.principals.roles.get(role_arn)
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
        key = self._key.newest
        token = seal(key, Session(role_arn, session_name, caller.access_key_id, expires_at, policy or ""))
        _, access_key_id, secret = opened((key,), token)
        session = role.session(self.account_id, session_name, caller.access_key_id, session_rules)
        return Credentials(access_key_id, secret, token, expires_at, session.arn, session.user_id)


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


@functools.lru_cache(maxsize=1024)
def _caller_in(session: Session, role: Role, account_id: str) -> Caller:
    """The same one for all requests of a session."""
    session_rules = read_policy(session.policy) if session.policy else None
    return role.session(account_id, session.name, session.began_with, session_rules)


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
