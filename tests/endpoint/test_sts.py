"""STS as real boto3 speaks to it, over real HTTP, with access checked and without."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import boto3
import pytest
import requests
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import ClientError
from polyhost.api.http import Reply, Request
from polyhost.api.sts import Sts
from polyhost.service_errors import EndpointError
from support.fronts import front
from support.principals import ACCOUNT, ANNA, BERT, BOSTON_ONLY, ENDPOINT, INVOKE, House, policy
from support.signing import signed

OFF_ACCOUNT = "000000000000"
REQUEST_ID = "7f3a&<id>"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


class Endpoint:
    """What stands behind STS's form and before the models: who asks, may they, with AWS's errors."""

    def __init__(self, house: House) -> None:
        self._access = house.access

    def answer(self, request: Request) -> Reply:
        target = request.headers.get("x-amzn-sagemaker-target-model", "").encode("latin-1").decode()
        context = {"sagemaker:TargetModel": target} if target else {}
        try:
            caller = self._access.authenticate(*request[:5], service="sagemaker")
            self._access.authorize(caller, INVOKE, ENDPOINT, context)
        except EndpointError as error:
            body = json.dumps({"Message": error.message}).encode()
            return Reply(body, error.status, ((b"x-amzn-errortype", error.type.encode()),))
        return Reply(f"{caller.arn} {target} {len(request.body)}".encode(), 200, ())


@pytest.fixture(scope="module")
def address(house: House) -> Iterator[str]:
    """Of a server that checks access."""
    sts, endpoint = Sts(house.access, ACCOUNT), Endpoint(house)

    def reply_to(request: Request) -> Reply:
        return sts.answer(request, REQUEST_ID) if request.path == "/" else endpoint.answer(request)

    with front(reply_to) as address:
        yield address


@pytest.fixture(scope="module")
def open_address() -> Iterator[str]:
    """Of a server that does not."""
    sts = Sts(None, OFF_ACCOUNT)
    with front(lambda request: sts.answer(request, REQUEST_ID)) as address:
        yield address


def client(address: str, who: Mapping[str, str], service: str = "sts", **more: Any) -> BaseClient:
    return boto3.client(
        service,
        endpoint_url=address,
        region_name="eu-west-1",
        aws_access_key_id=who["key"],
        aws_secret_access_key=who["secret"],
        aws_session_token=who.get("token"),
        config=Config(retries={"total_max_attempts": 1}, **more),
    )


def keys_of(credentials: Mapping[str, str]) -> dict[str, str]:
    return {
        "key": credentials["AccessKeyId"],
        "secret": credentials["SecretAccessKey"],
        "token": credentials["SessionToken"],
    }


def error_of(caught: pytest.ExceptionInfo[ClientError]) -> tuple[str, str, int]:
    response = caught.value.response
    return response["Error"]["Code"], response["Error"]["Message"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_who_am_i(address: str) -> None:
    """
    boto3 parses the answer, with the request's id.
    """
    answer = client(address, ANNA).get_caller_identity()

    assert answer["Arn"] == f"arn:aws:iam::{ACCOUNT}:user/anna"
    assert answer["Account"] == ACCOUNT
    assert answer["UserId"].startswith("AIDA")
    assert answer["ResponseMetadata"]["RequestId"] == REQUEST_ID
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-amzn-requestid"] == REQUEST_ID


def test_a_role_is_assumed_and_used(address: str, house: House) -> None:
    """
    Its credentials are the session's, for STS and for the endpoint, until they expire.
    """
    answer = client(address, BERT).assume_role(RoleArn=BOSTON_ONLY, RoleSessionName="tuesday", ExternalId="any")
    arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/boston-only/tuesday"
    assert answer["AssumedRoleUser"]["Arn"] == arn
    assert answer["AssumedRoleUser"]["AssumedRoleId"].endswith(":tuesday")
    remaining = answer["Credentials"]["Expiration"] - datetime.now(timezone.utc)
    assert 3500 < remaining.total_seconds() <= 3600

    session = keys_of(answer["Credentials"])
    assert client(address, session).get_caller_identity()["Arn"] == arn
    runtime = client(address, session, "sagemaker-runtime")
    given = {"EndpointName": "polyhost", "Body": bytes(range(256))}
    answer = runtime.invoke_endpoint(TargetModel="boston/a.tar.gz", **given)
    assert answer["Body"].read() == f"{arn} boston/a.tar.gz 256".encode()
    with pytest.raises(ClientError) as caught:
        runtime.invoke_endpoint(TargetModel="houston/a.tar.gz", **given)
    message = (
        f"User: {arn} is not authorized to perform: sagemaker:InvokeEndpoint on resource: {ENDPOINT} "
        "because no identity-based policy allows the sagemaker:InvokeEndpoint action"
    )
    assert error_of(caught) == ("AccessDeniedException", message, 403)


@pytest.mark.parametrize("size", [0, 1, 2_000_000])
def test_what_boto3_sends_is_verified(address: str, size: int) -> None:
    """
    Bodies of any size, names with spaces and letters beyond ASCII, through the whole of our front.
    """
    runtime = client(address, ANNA, "sagemaker-runtime")
    answer = runtime.invoke_endpoint(
        EndpointName="a b~+/x",
        TargetModel="Zürich/a  b%2F.tar.gz",
        CustomAttributes="x=é; y",
        InferenceId="1",
        Accept="text/csv, */*",
        Body=b"1" * size,
    )

    assert answer["Body"].read().decode() == f"arn:aws:iam::{ACCOUNT}:user/anna Zürich/a  b%2F.tar.gz {size}"


def test_a_role_is_narrowed_and_shortened(address: str) -> None:
    """
    `Policy` and `DurationSeconds` count.
    """
    narrow = json.dumps(policy(Effect="Deny", Action="sagemaker:*"))
    answer = client(address, ANNA).assume_role(
        RoleArn=BOSTON_ONLY,
        RoleSessionName="tuesday",
        DurationSeconds=900,
        Policy=narrow,
    )

    assert (answer["Credentials"]["Expiration"] - datetime.now(timezone.utc)).total_seconds() <= 900
    with pytest.raises(ClientError, match="with an explicit deny in a session policy"):
        client(address, keys_of(answer["Credentials"]), "sagemaker-runtime").invoke_endpoint(
            EndpointName="polyhost",
            TargetModel="boston/a.tar.gz",
            Body=b"",
        )


@pytest.mark.parametrize(
    ("who", "code", "message"),
    [
        (ANNA | {"key": "AKIANOBODY0000000000"}, "InvalidClientTokenId", "security token .* is invalid"),
        (ANNA | {"secret": "x" * 40}, "SignatureDoesNotMatch", "does not match the signature you provided"),
        (ANNA | {"token": "x"}, "InvalidClientTokenId", "security token .* is invalid"),
    ],
)
def test_strangers_are_refused_in_sts_words(address: str, who: dict[str, str], code: str, message: str) -> None:
    """
    The query protocol's codes are not those of the others.
    """
    with pytest.raises(ClientError, match=message) as caught:
        client(address, who).get_caller_identity()
    assert error_of(caught)[0] == code
    assert error_of(caught)[2] == 403
    assert caught.value.response["ResponseMetadata"]["RequestId"] == REQUEST_ID


def test_an_expired_session_is_refused_in_sts_words(house: House, address: str) -> None:
    """
    boto3 fetches other credentials when it reads this code.
    """
    anna = house.access.authenticate(*signed(**ANNA), service="sagemaker")
    house.clock.ahead_secs = -900
    old = house.access.assume_role(anna, BOSTON_ONLY, "tuesday", 900, None)
    house.clock.ahead_secs = 60
    who = {"key": old.access_key_id, "secret": old.secret_access_key, "token": old.session_token}
    with pytest.raises(ClientError) as caught:
        client(address, who).get_caller_identity()
    house.clock.ahead_secs = 0
    assert error_of(caught) == ("ExpiredToken", "The security token included in the request is expired", 403)


def test_a_request_without_a_signature_is_refused(address: str) -> None:
    """
    Whatever it asks for.
    """
    for body in ("Action=GetCallerIdentity&Version=2011-06-15", "Action=Nonsense", ""):
        answer = requests.post(address, body, timeout=30)
        assert answer.status_code == 403
        assert "<Code>MissingAuthenticationToken</Code>" in answer.text


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({"RoleArn": f"arn:aws:iam::{ACCOUNT}:role/annas"}, "AccessDenied", "user/bert is not authorized to perform"),
        ({"RoleArn": f"arn:aws:iam::{ACCOUNT}:role/<&'\">"}, "AccessDenied", "role/<&'\"> because"),
        ({"RoleSessionName": "a b"}, "ValidationError", "RoleSessionName must have"),
        ({"DurationSeconds": 899}, "ValidationError", "at least 900"),
        ({"DurationSeconds": 7201}, "ValidationError", "exceeds the MaxSessionDuration set for this role: 7200"),
        ({"Policy": '{"Statement": 1}'}, "MalformedPolicyDocument", "Statement"),
        ({"PolicyArns": [{"arn": "arn:aws:iam::aws:policy/x"}]}, "ValidationError", "PolicyArns.member.1.arn of Assu"),
        ({"Tags": [{"Key": "a", "Value": "b"}]}, "ValidationError", "Tags.member.1.Key of AssumeRole is not support"),
    ],
)
def test_what_cannot_be_assumed_is_said_in_words(address: str, given: dict[str, Any], code: str, message: str) -> None:
    """
    A parameter that would narrow or mark the session is refused, not passed over.
    """
    sts = client(address, BERT, parameter_validation=False)
    with pytest.raises(ClientError) as caught:
        sts.assume_role(**{"RoleArn": BOSTON_ONLY, "RoleSessionName": "tuesday", **given})
    assert error_of(caught)[0] == code
    assert message in error_of(caught)[1]


@pytest.mark.parametrize("fixture", ["address", "open_address"])
def test_iam_is_refused_by_name(fixture: str, request: pytest.FixtureRequest) -> None:
    """With access control and without it, so that a notebook's create_role is told where roles come from."""
    iam = client(request.getfixturevalue(fixture), ANNA, "iam")
    with pytest.raises(ClientError) as caught:
        iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")
    text = "There is no IAM here: roles are in the auth file. polyhost add-role copies one from IAM."
    assert error_of(caught) == ("InvalidAction", text, 400)


def test_other_actions_are_refused_with_a_list(address: str) -> None:
    """
    The error says what there is.
    """
    with pytest.raises(ClientError) as caught:
        client(address, ANNA).get_session_token()
    assert error_of(caught) == (
        "InvalidAction",
        "Could not find operation GetSessionToken for version 2011-06-15: there are AssumeRole, GetCallerIdentity.",
        400,
    )


def test_without_access_control_everybody_is_in_a_role(open_address: str) -> None:
    """
    `get_execution_role()` of the SageMaker SDK wants one; whatever key it signs with, or none.
    """
    answer = client(open_address, {"key": "any", "secret": "any"}).get_caller_identity()
    assert re.fullmatch(f"arn:aws:sts::{OFF_ACCOUNT}:assumed-role/[a-z]+/[a-z]+", answer["Arn"])
    assert answer["Account"] == OFF_ACCOUNT
    assert answer["UserId"].startswith("AROA")
    assert requests.post(open_address, "Action=GetCallerIdentity", timeout=30).status_code == 200


@pytest.mark.parametrize("path", ["", "service-role/", "a/b/"])
def test_without_access_control_a_role_that_was_assumed_is_known(open_address: str, path: str) -> None:
    """
    Any role may be, and its path is left out; a token that is somebody else's, or none, changes nothing.
    """
    role = f"arn:aws:iam::999999999999:role/{path}SageMakerRole"
    answer = client(open_address, ANNA).assume_role(RoleArn=role, RoleSessionName="sdk", DurationSeconds=43200)
    arn = "arn:aws:sts::999999999999:assumed-role/SageMakerRole/sdk"
    assert answer["AssumedRoleUser"]["Arn"] == arn
    identity = client(open_address, keys_of(answer["Credentials"])).get_caller_identity()
    assert (identity["Arn"], identity["Account"]) == (arn, "999999999999")
    assert identity["UserId"] == answer["AssumedRoleUser"]["AssumedRoleId"]
    for token in ("FwoGZXIvYXdzEBYaD", "gA==", "OTk5OTk5OTk5OTk5L2EvPGI-", "!", "é"):
        answer = requests.post(
            open_address, "Action=GetCallerIdentity", headers={"X-Amz-Security-Token": token.encode()}, timeout=30
        )
        assert answer.status_code == 200
        assert f"<Account>{OFF_ACCOUNT}</Account>" in answer.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "InvalidAction"),
        (b"\xff\xfe", "ValidationError"),
        (b"Action=a%00%1b%ff&Action2", "InvalidAction"),
        (b"&".join(b"%d=1" % number for number in range(101)), "ValidationError"),
        (b"Action=GetCallerIdentity&Action=AssumeRole", "ValidationError"),
        (b"Action=AssumeRole", "ValidationError"),
        (b"Action=AssumeRole&RoleArn=x&RoleSessionName=y", "ValidationError"),
        (b"Action=AssumeRole&RoleArn=x&RoleSessionName=y&DurationSeconds=-1", "ValidationError"),
        (b"Action=AssumeRole&RoleArn=x&RoleSessionName=y&DurationSeconds=" + b"9" * 5000, "ValidationError"),
    ],
)
def test_nonsense_is_refused_as_xml(open_address: str, body: bytes, code: str) -> None:
    """
    Every answer can be parsed.
    """
    answer = requests.post(open_address, body, timeout=30)
    error = ET.fromstring(answer.content)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "text/xml"
    assert error.findtext(".//{*}Code") == code
    assert error.findtext(".//{*}Type") == "Sender"


def test_our_own_failure_is_500_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """
    With nothing of it in the answer.
    """
    house = House(tmp_path)
    house.access._key = None
    wire = signed(body=b"Action=AssumeRole&RoleSessionName=abc&RoleArn=" + BOSTON_ONLY.encode(), service="sts", **ANNA)
    reply = Sts(house.access, ACCOUNT).answer(Request(*wire), "7")

    assert reply.status == 500
    assert re.search("<Type>Receiver</Type><Code>InternalFailure</Code>.* log has request 7", reply.body.decode())
    assert caplog.records[0].levelno == logging.ERROR
