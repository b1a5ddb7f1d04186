"""
boto3 as the commands use it: clients of AWS, or of a server in its place, and errors that are sentences.

Importing boto3 takes a third of a second: only what talks to AWS does it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from polyhost.errors import DeployFailed, InvalidSetting

# For a server at home that asks nobody who he is.
_STAND_IN_KEYS = {"aws_access_key_id": "anybody", "aws_secret_access_key": "anything"}
# A first invocation may take long, but SageMaker answers within 60 s, whatever the model does.
_READ_SECS = 70
_CONNECT_SECS = 10

_BAD_CREDENTIALS = (
    "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException",
    "InvalidSignatureException", "SignatureDoesNotMatch", "AuthFailure", "IncompleteSignature",
)  # fmt: skip
_FORBIDDEN = ("AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation")


class CallFailed(DeployFailed):
    """`code` is AWS's."""

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code

    @property
    def is_forbidden(self) -> bool:
        return self.code in _FORBIDDEN


class NotAsked(CallFailed):
    """The call did not reach a server, or the server did not accept our credentials."""


class Aws:
    """
    `endpoint_url`: the server that stands in SageMaker's place, "" for AWS.

    Not `needs_region`: S3 and IAM are found from any region.
    """

    def __init__(self, region: str = "", endpoint_url: str = "", *, needs_region: bool = True) -> None:
        import boto3

        with _settings_translated():
            self._session = boto3.Session(region_name=region or None)
            self.endpoint_url = endpoint_url
            self.is_own = bool(endpoint_url)
            found = self._session.region_name or ("us-east-1" if self.is_own or not needs_region else "")
            self._keys = _STAND_IN_KEYS if self.is_own and self._session.get_credentials() is None else {}
        if not found:
            raise InvalidSetting("No region is set: give --region, or AWS_REGION, or one in ~/.aws/config.")
        self.region: str = found

    @functools.cache  # noqa: B019 - a command has one of these
    def client(self, service: str, region: str = "") -> Any:
        from botocore.config import Config

        url = self.endpoint_url if service in ("sagemaker", "sagemaker-runtime") else ""
        config = Config(read_timeout=_READ_SECS, connect_timeout=_CONNECT_SECS, retries={"mode": "standard"})
        with _settings_translated():
            return self._session.client(
                service, region_name=region or self.region, endpoint_url=url or None, config=config, **self._keys
            )

    def call(self, service: str, operation: str, parameters: Mapping[str, Any], region: str = "") -> dict[str, Any]:
        """Raises CallFailed."""
        from botocore import xform_name

        method = getattr(self.client(service, region), xform_name(operation))
        with translated(service, operation):
            return dict(method(**parameters))

    def pages(self, service: str, operation: str, field: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """All items of a list. Raises CallFailed."""
        from botocore import xform_name

        paginator = self.client(service).get_paginator(xform_name(operation))
        with translated(service, operation):
            for page in paginator.paginate(**parameters):
                yield from page.get(field, ())

    def post(self, path: str) -> tuple[int, str]:
        """
        An own route of the server that stands in SageMaker's place: status and body.

        Signed as a call of SageMaker, where there are credentials. Raises botocore's BotoCoreError.
        """
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.httpsession import URLLib3Session

        request = AWSRequest("POST", self.endpoint_url.rstrip("/") + path, data=b"")
        credentials = self._session.get_credentials()
        if credentials is not None:
            SigV4Auth(credentials.get_frozen_credentials(), "sagemaker", self.region).add_auth(request)
        answer = URLLib3Session(timeout=(_CONNECT_SECS, _READ_SECS)).send(request.prepare())
        return answer.status_code, answer.text

    @functools.cached_property
    def account_id(self) -> str:
        return str(self.call("sts", "GetCallerIdentity", {})["Account"])


@contextlib.contextmanager
def _settings_translated() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no url
        raise InvalidSetting(f"The AWS settings cannot be used: {_sentence(error)}") from error


@contextlib.contextmanager
def translated(service: str, operation: str) -> Iterator[None]:
    """All that botocore raises becomes CallFailed."""
    from botocore import exceptions

    action = f"{_prefix_of(service)}:{operation}"
    try:
        yield
    except exceptions.ClientError as error:
        raise _refusal(action, error.response) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise NotAsked(
            f"There are no AWS credentials for {action}: log in (aws sso login, aws configure) or set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
        raise NotAsked(
            f"{action} was not answered: {_sentence(error)} Is the address right, and the network?"
        ) from error
    except exceptions.BotoCoreError as error:
        raise CallFailed(f"{action} was not asked: {_sentence(error)}") from error


def _prefix_of(service: str) -> str:
    """What policies call it."""
    return "sagemaker" if service == "sagemaker-runtime" else service


def _refusal(action: str, response: Mapping[str, Any]) -> CallFailed:
    code, message = response["Error"].get("Code", ""), ended(response["Error"].get("Message") or "no reason was given")
    if code in _BAD_CREDENTIALS:
        return NotAsked(f"{action}: these AWS credentials are not accepted: {message} Log in again.", code)
    if code in _FORBIDDEN:
        return CallFailed(f"{action} is not allowed: {message} docs/aws.md has the policies that are needed.", code)
    if code in ("ResourceLimitExceeded", "LimitExceededException"):
        return CallFailed(
            f"A quota of the account is used up: {message} Ask for more in Service Quotas (Amazon SageMaker, "
            "'… for endpoint usage'), or take another --instance-type or a smaller --instance-count.",
            code,
        )
    return CallFailed(f"{action}: {message}", code)


def _sentence(error: Exception) -> str:
    return ended(str(error) or type(error).__name__)


def ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
