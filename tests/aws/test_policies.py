"""deploy/iam: the policies are AWS's language, hold all that the commands ask for, and nothing more than they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError
from conftest import ROOT
from support.endpoint import EndpointServer

from aws.conftest import ACCOUNT, HOUSE, REGION, Cloud, Shell

POLICIES = ROOT / "deploy" / "iam"
# As docs/aws.md has users fill them in.
FILLED = {"ACCOUNT": ACCOUNT, "REGION": REGION, "BUCKET": "our-models", "PREFIX": "houses", "DEPLOYMENT": "houses"}


def policy(name: str) -> dict[str, Any]:
    text = (POLICIES / f"{name}.json").read_text()
    for placeholder, value in FILLED.items():
        text = text.replace(placeholder, value)
    document = json.loads(text)
    assert isinstance(document, dict)
    return document


def test_aws_takes_them(cloud: Cloud) -> None:
    """Each is a policy, and the trust one a role's."""
    iam = cloud.client("iam")
    iam.create_role(RoleName="new", AssumeRolePolicyDocument=json.dumps(policy("execution-role-trust")))
    names = [path.stem for path in POLICIES.glob("*.json") if not path.stem.endswith("-trust")]
    assert len(names) == 5
    for name in names:
        iam.create_policy(PolicyName=name, PolicyDocument=json.dumps(policy(name)))


@pytest.fixture
def guarded(cloud: Cloud) -> Iterator[Cloud]:
    """AWS that checks permissions from now on."""
    yield cloud
    requests.post(f"{cloud.url}/moto-api/reset-auth", data=b"inf", timeout=30)


def user(cloud: Cloud, *names: str) -> Shell:
    """Somebody with these policies; moto knows no resources and conditions, so they are of actions alone."""
    iam = cloud.client("iam")
    iam.create_user(UserName=names[0])
    for name in names:
        actions = [action for statement in policy(name)["Statement"] for action in statement["Action"]]
        document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
        iam.put_user_policy(UserName=names[0], PolicyName=name, PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName=names[0])["AccessKey"]
    keys = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    return Shell({"AWS_ENDPOINT_URL": cloud.url, "AWS_REGION": REGION, **keys})


def test_they_allow_all_that_the_commands_do(guarded: Cloud, samples_folder: Path) -> None:
    """The deployer deploys, scales and destroys, who keeps the models adds and removes; neither can do the other's."""
    deployer, keeper = user(guarded, "deployer"), user(guarded, "models")
    requests.post(f"{guarded.url}/moto-api/reset-auth", data=b"0", timeout=30)
    add = ("models", "add", "--models", "s3://our-models/houses/", str(samples_folder / "houston"))
    deploy = ("deploy", "houses", "--models", "s3://our-models/houses/", "--autoscale", "1:4:100")

    keeper.run(*add)
    keeper.run("models", "list", "--models", "s3://our-models/houses/")
    deployer.run(*deploy, "--first", "houston.tar.gz", "--body", HOUSE)
    deployer.run(*deploy)
    refused = deployer.try_(*add, "--name", "other.tar.gz")
    assert (refused.code, "is not allowed" in refused.said) == (6, True), refused.said
    assert keeper.try_("destroy", "houses").code == 6
    deployer.run("destroy", "houses")
    keeper.run("models", "remove", "--models", "s3://our-models/houses/", "houston.tar.gz", "--yes")


def test_the_invoker_may_call_its_prefixes_alone(tmp_path: Path, samples_folder: Path) -> None:
    """Asked of a Polyhost with access control, which knows conditions: and the deployer deploys there with its keys."""
    models = tmp_path / "models"
    for name in ("company_a/houston", "company_b/houston", "common/deep/er/houston"):
        (models / name).parent.mkdir(parents=True)
        (models / f"{name}.tar.gz").write_bytes((samples_folder / "houston.tar.gz").read_bytes())
    keys = {name: f"AKIA{name.upper():0<16}" for name in ("deployer", "invoker")}
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sagemaker:*", "Resource": "*"}]}
    policies = {"deployer": everything, "invoker": policy("invoker")}
    users = [
        {"name": name, "access_key_id": key, "secret_access_key": key * 2, "policies": [policies[name]]}
        for name, key in keys.items()
    ]
    auth = tmp_path / "principals.json"
    auth.write_text(json.dumps({"account_id": ACCOUNT, "users": users}))
    auth.chmod(0o600)
    server = EndpointServer("native", None, "--auth", "sigv4", "--auth-file", str(auth))
    try:
        url = {"AWS_ENDPOINT_URL_SAGEMAKER": server.url}
        shells = {
            name: Shell({**url, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": key * 2})
            for name, key in keys.items()
        }
        deploy = ("deploy", "houses", "--models", str(models))
        assert "is not allowed" in shells["invoker"].try_(*deploy).said
        shells["deployer"].run(*deploy)

        runtime = server.client(
            "sagemaker-runtime", aws_access_key_id=keys["invoker"], aws_secret_access_key=keys["invoker"] * 2
        )
        call = {"EndpointName": "houses", "ContentType": "text/csv", "Body": HOUSE}
        for allowed in ("company_a/houston.tar.gz", "common/deep/er/houston.tar.gz"):
            assert runtime.invoke_endpoint(TargetModel=allowed, **call)["Body"].read()
        for forbidden in ("company_b/houston.tar.gz", "company_a.tar.gz"):
            with pytest.raises(ClientError) as caught:
                runtime.invoke_endpoint(TargetModel=forbidden, **call)
            assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    finally:
        server.kill()
