"""A file of principals, and who is in it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from polyhost.endpoint.access import Access

from support.signing import Wire, signed

ACCOUNT = "123456789012"
ANNA = {"key": "AKIAANNA000000000000", "secret": "annas/secret+that-nobody-may-ever-see00"}
BERT = {"key": "AKIABERT000000000000", "secret": "berts/secret+that-nobody-may-ever-see00"}
METRICS_TOKEN = "for-prometheus-alone"
# Of Carl, who has no access key.
CARLS_KEY = "phk_carls-key-that-nobody-may-ever-see00000000000"
ENDPOINT = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint/polyhost"
BOSTON_ONLY = f"arn:aws:iam::{ACCOUNT}:role/boston-only"
INVOKE = "sagemaker:InvokeEndpoint"


def policy(**statement: Any) -> dict[str, Any]:
    whole = {"Effect": "Allow", "Action": "*", "Resource": "*"} | statement
    return {
        "Version": "2012-10-17",
        "Statement": [{name: value for name, value in whole.items() if value is not None}],
    }


def document() -> dict[str, Any]:
    """Anna may do all at SageMaker, as Carl may; Bert nothing. All three may be boston-only."""
    only_boston = {"StringLike": {"sagemaker:TargetModel": "boston/*"}}
    return {
        "account_id": ACCOUNT,
        "metrics_token": METRICS_TOKEN,
        "users": [
            {
                "name": "anna",
                "access_key_id": ANNA["key"],
                "secret_access_key": ANNA["secret"],
                "policies": ["arn:aws:iam::aws:policy/AmazonSageMakerFullAccess"],
            },
            {"name": "bert", "access_key_id": BERT["key"], "secret_access_key": BERT["secret"]},
            {
                "name": "carl",
                "api_keys": ["sha256:" + hashlib.sha256(CARLS_KEY.encode()).hexdigest()],
                "policies": ["arn:aws:iam::aws:policy/AmazonSageMakerFullAccess"],
            },
        ],
        "roles": [
            {
                "name": "boston-only",
                "may_be_assumed_by": ["anna", f"arn:aws:iam::{ACCOUNT}:user/bert", "carl"],
                "policies": [policy(Action=INVOKE, Resource=ENDPOINT, Condition=only_boston)],
                "max_session_secs": 7200,
            },
            {"name": "annas", "may_be_assumed_by": ["anna"], "policies": [policy()]},
            {"name": "next", "may_be_assumed_by": [BOSTON_ONLY], "policies": [policy()]},
        ],
    }


class Clock:
    """Real time, and what a test adds."""

    def __init__(self) -> None:
        self.ahead_secs = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_secs


class House:
    """A file of principals in a folder, and the Access that has read it."""

    def __init__(self, folder: Path, content: dict[str, Any] | None = None, token_key_file: Path | None = None) -> None:
        self.folder = folder
        self.file = folder / "principals.json"
        self.clock = Clock()
        self._token_key_file = token_key_file
        self._writes = 0
        self.write(json.dumps(content or document()))
        self.access = self.read()

    def write(self, text: str) -> None:
        self._writes += 1
        self.file.write_text(text)
        self.file.chmod(0o600)
        # Two writes within one tick of the file system's clock would look like one.
        os.utime(self.file, (self._writes, self._writes))

    def read(self) -> Access:
        return Access.read(
            self.file, secret_folder=self.folder / "state", token_key_file=self._token_key_file, now=self.clock
        )

    def wait_for_a_look(self) -> None:
        self.clock.ahead_secs += 1


def asked(access: Access, wire: Wire, service: str = "sagemaker"):
    return access.authenticate(wire.method, wire.path, wire.query, wire.headers, wire.body, service=service)


def caller(access: Access, who: dict[str, str], **more: Any):
    return asked(access, signed(**who, **more))
