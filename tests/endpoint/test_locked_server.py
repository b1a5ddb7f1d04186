"""A server with access control, called by boto3 as its users do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from support.endpoint import EndpointServer
from support.server import Answer

HOUSE = "1998,2150,3,2.5,0.4,2"
SECRET = "arn:aws:polyhost:*:*:loaded-model/secret*"
ENDPOINT = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/polyhost"
KEYS = {"aws_access_key_id": "AKIAADMINADMINADMIN0", "aws_secret_access_key": "the-secret-of-the-admin"}
API_KEY = "phk_the-api-key-of-bob-himself"
BOB = {"aws_access_key_id": "AKIABOBBOBBOBBOB0000", "aws_secret_access_key": "the-secret-of-bob-himself"}

READER = {"aws_access_key_id": "AKIAREADERREADER0000", "aws_secret_access_key": "the-secret-of-the-reader"}


def allow(action: str | list[str], resource: str = "*", **condition: Any) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": action, "Resource": resource}
    if condition:
        statement["Condition"] = condition
    return {"Version": "2012-10-17", "Statement": [statement]}


def principals() -> dict[str, Any]:
    return {
        "account_id": "123456789012",
        "metrics_token": "the-token-for-prometheus",
        "users": [
            {"name": "admin", "access_key_id": "AKIAADMINADMINADMIN0", "secret_access_key": "the-secret-of-the-admin",
             "policies": [allow(["sagemaker:*", "polyhost:*", "sts:AssumeRole"])]},
            {"name": "bob", "access_key_id": "AKIABOBBOBBOBBOB0000", "secret_access_key": "the-secret-of-bob-himself",
             "api_keys": ["sha256:" + hashlib.sha256(API_KEY.encode()).hexdigest()],
             "policies": [allow("sts:AssumeRole")]},
            {"name": "reader", "access_key_id": READER["aws_access_key_id"],
             "secret_access_key": READER["aws_secret_access_key"], "policies": [allow("cloudwatch:ListMetrics")]},
        ],
        "roles": [
            {"name": "boston-only", "may_be_assumed_by": ["bob"],
             "policies": [allow("sagemaker:InvokeEndpoint", ENDPOINT,
                                StringLike={"sagemaker:TargetModel": ["boston/*"]})]},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Iterator[EndpointServer]:
    folder = tmp_path_factory.mktemp("locked")
    for name in ("boston", "houston"):
        (folder / "models" / name).mkdir(parents=True)
        shutil.copy(samples_folder / f"{name}.tar.gz", folder / "models" / name / "model.tar.gz")
    file = folder / "principals.json"
    file.write_text(json.dumps(principals()))
    file.chmod(0o600)
    server = EndpointServer("native", folder / "models", "--auth", "sigv4", "--auth-file", str(file))
    server.file = file
    yield server
    assert server.stop() == 0, server.process.log
    for secret in ("the-secret-of-the-admin", "the-secret-of-bob-himself", "the-token-for-prometheus", API_KEY):
        assert secret not in server.process.log


def invoke(server: EndpointServer, target: str, **keys: str) -> str:
    runtime = server.client("sagemaker-runtime", **keys)
    answer = runtime.invoke_endpoint(EndpointName="polyhost", TargetModel=target, ContentType="text/csv", Body=HOUSE)
    return str(answer["Body"].read().decode())


def refusal(server: EndpointServer, target: str = "boston/model.tar.gz", **keys: str) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        invoke(server, target, **keys)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    return caught.value.response["Error"]["Code"], caught.value.response["Error"]["Message"]


def in_boston(server: EndpointServer) -> dict[str, str]:
    """Bob's keys in the role that is restricted to Boston's models."""
    given = server.client("sts", **BOB).assume_role(
        RoleArn="arn:aws:iam::123456789012:role/boston-only", RoleSessionName="test"
    )["Credentials"]
    return {
        "aws_access_key_id": given["AccessKeyId"],
        "aws_secret_access_key": given["SecretAccessKey"],
        "aws_session_token": given["SessionToken"],
    }


ADMIN = Credentials("AKIAADMINADMINADMIN0", "the-secret-of-the-admin")


def signed(
    server: EndpointServer, method: str, path: str, body: bytes = b"", who: Credentials = ADMIN, **headers: str
) -> Answer:
    """By botocore's own signer."""
    request = AWSRequest(method, server.url + path, data=body, headers=headers)
    SigV4Auth(who, "sagemaker", "us-east-1").add_auth(request)
    named = {name.replace("-", "_"): value for name, value in request.headers.items()}
    return server.request(method, path, body, **named)


def test_who_may_is_answered(server: EndpointServer) -> None:
    """boto3 signs, the server checks."""
    assert json.loads(invoke(server, "boston/model.tar.gz", **KEYS))


@pytest.mark.parametrize(
    ("method", "action", "given"),
    [
        ("invoke_endpoint_async", "InvokeEndpointAsync", {"InputLocation": "s3://bucket/key"}),
        ("invoke_endpoint_with_response_stream", "InvokeEndpointWithResponseStream", {"Body": HOUSE}),
    ],
)
def test_calls_of_each_kind_need_their_own_action(
    server: EndpointServer, method: str, action: str, given: dict[str, Any]
) -> None:
    """The role may InvokeEndpoint, and nothing else. The admin may, and is told that the endpoint is none for it."""
    with pytest.raises(ClientError, match=f"to perform: sagemaker:{action} on") as refused:
        getattr(server.client("sagemaker-runtime", **in_boston(server)), method)(EndpointName="polyhost", **given)
    with pytest.raises(ClientError) as allowed:
        getattr(server.client("sagemaker-runtime", **KEYS), method)(EndpointName="polyhost", **given)

    assert refused.value.response["Error"]["Code"] == "AccessDeniedException"
    assert allowed.value.response["Error"]["Code"] == "ValidationError"


def test_a_role_is_restricted_to_its_models(server: EndpointServer) -> None:
    """Assumed by STS; the answer to the others is AWS's sentence."""
    keys = in_boston(server)
    assert json.loads(invoke(server, "boston/model.tar.gz", **keys))
    code, message = refusal(server, "houston/model.tar.gz", **keys)
    assert code == "AccessDeniedException"
    assert message.startswith(
        "User: arn:aws:sts::123456789012:assumed-role/boston-only/test is not authorized to perform: "
        f"sagemaker:InvokeEndpoint on resource: {ENDPOINT}"
    )
    code, _ = refusal(server, **{**keys, "aws_session_token": keys["aws_session_token"][:-4] + "AAAA"})
    assert code in ("UnrecognizedClientException", "InvalidSignatureException")


def test_a_role_is_restricted_by_the_open_inference_protocol_too(server: EndpointServer) -> None:
    keys = in_boston(server)
    role = Credentials(keys["aws_access_key_id"], keys["aws_secret_access_key"], keys["aws_session_token"])
    rows = {"name": "x", "datatype": "FP64", "shape": [1, 6], "data": [float(field) for field in HOUSE.split(",")]}
    body = json.dumps({"inputs": [rows]}).encode()

    def ask(model: str, verb: str = "infer", who: Credentials = role) -> Answer:
        return signed(server, "POST", f"/v2/models/polyhost/{model}/{verb}", body, who)

    (output,) = ask("boston/model.tar.gz").json()["outputs"]
    assert output["data"] == json.loads(invoke(server, "boston/model.tar.gz", **keys))
    for path in ("houston/model.tar.gz", "boston%2F..%2Fhouston%2Fmodel.tar.gz"):
        assert ask(path).status in (400, 403)
        assert [*ask(path).json()] == ["error"]
    assert ask("houston/model.tar.gz", who=ADMIN).status == 200
    load = "/v2/repository/models/polyhost/boston%2Fmodel.tar.gz/load"
    assert signed(server, "POST", load, who=role).status == 403
    assert signed(server, "POST", load).status == 200
    assert server.request("POST", "/v2/models/polyhost/boston%2Fmodel.tar.gz/infer", body).json().keys() == {"error"}
    assert server.request("GET", "/v2/health/live").json() == {"live": True}
    assert server.request("POST", "/v2/repository/index").status == 403
    large = signed(server, "POST", "/v2/models/polyhost/boston/model.tar.gz/infer", body + b" " * 1_000_000, role)
    assert large.status == 200


def test_who_may_not_is_told_why(server: EndpointServer) -> None:
    """Unknown keys, wrong secrets, no policy, no signature."""
    assert refusal(server)[0] == "UnrecognizedClientException"
    assert refusal(server, **{**KEYS, "aws_secret_access_key": "wrong"})[0] == "InvalidSignatureException"
    assert refusal(server, **BOB)[0] == "AccessDeniedException"
    answer = server.request("POST", "/invocations", HOUSE, X_Amzn_SageMaker_Target_Model="boston/model.tar.gz")
    assert (answer.status, answer.fields["x-amzn-errortype"]) == (403, "MissingAuthenticationTokenException")


def test_an_api_key_is_its_users(server: EndpointServer) -> None:
    """curl needs nothing else: the same policies decide, and a role can be assumed by it. A wrong one is told so."""
    target = {"X_Amzn_SageMaker_Target_Model": "boston/model.tar.gz", "Content_Type": "text/csv"}
    wrong = server.request("POST", "/invocations", HOUSE, Authorization=f"Bearer {API_KEY}x", **target)
    assert (wrong.status, wrong.fields["x-amzn-errortype"]) == (403, "UnrecognizedClientException")
    bobs = server.request("POST", "/invocations", HOUSE, Authorization=f"Bearer {API_KEY}", **target)
    assert (bobs.status, bobs.fields["x-amzn-errortype"]) == (403, "AccessDeniedException")
    assert "user/bob is not authorized" in bobs.json()["Message"]
    changed = principals()
    changed["users"][1]["policies"].append(allow("sagemaker:InvokeEndpoint"))
    replace(server.file, json.dumps(changed))
    wait_until(lambda: is_allowed(server, BOB))
    assert server.request("POST", "/invocations", HOUSE, Authorization=f"Bearer {API_KEY}", **target).status == 200
    large = (HOUSE + "\n") * 20_000
    assert server.request("POST", "/invocations", large, Authorization=f"bearer {API_KEY}", **target).status == 200
    replace(server.file, json.dumps(principals()))
    wait_until(lambda: not is_allowed(server, BOB))


def test_the_control_plane_and_mmss_routes_need_it_too(server: EndpointServer) -> None:
    """/ping is open, /metrics is for whoever has the token."""
    assert server.request("GET", "/ping").status == 200
    assert server.request("GET", "/models").status == 403
    assert signed(server, "GET", "/models").status == 200
    assert server.request("POST", "/refresh").status == 403
    assert signed(server, "POST", "/refresh").status == 200
    assert server.request("GET", "/metrics").status == 403
    assert server.request("GET", "/metrics", Authorization="Bearer wrong").status == 403
    assert server.request("GET", "/metrics", Authorization="Bearer the-token-for-prometheus").status == 200
    assert server.client("sagemaker", **KEYS).list_endpoints()["Endpoints"]
    with pytest.raises(ClientError, match="not authorized to perform: sagemaker:ListEndpoints"):
        server.client("sagemaker", **BOB).list_endpoints()
    assert server.client("sts", **BOB).get_caller_identity()["Arn"] == "arn:aws:iam::123456789012:user/bob"


def test_the_file_is_read_again_when_it_changes(server: EndpointServer) -> None:
    """A broken one leaves the old in force."""
    changed = principals()
    changed["users"][1]["policies"].append(allow("sagemaker:InvokeEndpoint"))
    replace(server.file, json.dumps(changed))
    wait_until(lambda: is_allowed(server, BOB))
    replace(server.file, "{")
    wait_until(lambda: "principals.json" in server.process.log and is_allowed(server, BOB))
    replace(server.file, json.dumps(principals()))
    wait_until(lambda: not is_allowed(server, BOB))


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(stat.S_IRUSR | stat.S_IWUSR)
    os.replace(new, file)


def is_allowed(server: EndpointServer, keys: dict[str, str]) -> bool:
    try:
        invoke(server, "boston/model.tar.gz", **keys)
    except ClientError:
        return False
    return True


def wait_until(condition: Any) -> None:
    """The file is looked at once a second: ask until it was."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline


def test_a_target_cannot_leave_what_its_policy_names(server: EndpointServer) -> None:
    """Neither by dots nor by escapes; large bodies are checked as well."""
    keys = in_boston(server)
    with pytest.raises(ClientError) as caught:
        invoke(server, "boston/../houston/model.tar.gz", **keys)
    assert caught.value.response["Error"]["Code"] == "ValidationError"
    runtime = server.client("sagemaker-runtime", **keys)
    large = (HOUSE + "\n") * 20_000
    answer = runtime.invoke_endpoint(
        EndpointName="polyhost", TargetModel="boston/model.tar.gz", ContentType="text/csv", Body=large
    )
    assert len(json.loads(answer["Body"].read())) == 20_000
    with pytest.raises(ClientError, match="not authorized"):
        runtime.invoke_endpoint(
            EndpointName="polyhost", TargetModel="houston/model.tar.gz", ContentType="text/csv", Body=large
        )


def test_every_way_to_a_loaded_model_asks_for_it_by_name(server: EndpointServer, samples_folder: Path) -> None:
    """A policy that denies one model denies it on every route; without a name nothing is registered."""
    changed = principals()
    changed["users"][0]["policies"].append({
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Deny", "Action": "polyhost:*", "Resource": SECRET}],
    })  # fmt: skip
    url = str(samples_folder / "houston")
    json_type = {"Content-Type": "application/json"}
    plain = json.dumps({"model_name": "plain", "url": url}).encode()
    secret = json.dumps({"model_name": "secret", "url": url}).encode()
    nameless = json.dumps({"url": url}).encode()
    assert signed(server, "POST", "/models", plain, **json_type).status == 200
    assert signed(server, "POST", "/models", secret, **json_type).status == 200
    replace(server.file, json.dumps(changed))
    wait_until(lambda: signed(server, "POST", "/models/secret/invoke", HOUSE.encode()).status == 403)
    for method, path in [
        ("POST", "/invocations?model_name=secret"), ("POST", "/predictions/secret"), ("POST", "/secret/predict"),
        ("GET", "/models/secret"), ("DELETE", "/models/secret"), ("PUT", "/models/secret?min_worker=0"),
        ("OPTIONS", "/predictions/secret"), ("POST", f"/models?model_name=secret2&url={url}"),
    ]:  # fmt: skip
        assert signed(server, method, path, HOUSE.encode()).status == 403, path
    assert signed(server, "POST", "/invocations?model_name=plain", HOUSE.encode()).status == 200
    assert signed(server, "POST", "/models", nameless, **json_type).status == 400
    replace(server.file, json.dumps(principals()))


def test_metrics_are_read_by_those_whose_policies_allow_it(server: EndpointServer) -> None:
    """CloudWatch's own actions count, and a signature for CloudWatch."""
    allowed = server.client("cloudwatch", **READER)
    assert isinstance(allowed.list_metrics()["Metrics"], list)
    with pytest.raises(ClientError) as caught:
        allowed.get_metric_data(MetricDataQueries=[], StartTime=0, EndTime=60)
    assert caught.value.response["Error"]["Code"] == "AccessDenied"
    assert "not authorized to perform: cloudwatch:GetMetricData on resource: *" in str(caught.value)
    with pytest.raises(ClientError, match="not authorized to perform: cloudwatch:ListMetrics"):
        server.client("cloudwatch", **KEYS).list_metrics()
    with pytest.raises(ClientError, match="The security token included in the request is invalid"):
        server.client("cloudwatch").list_metrics()
