"""
Users who pick a customer's row and ask the churn model of that customer's state, by boto3.

Of the environment alone (benchmarks/README.md): LOADTEST_ENDPOINT, LOADTEST_ENDPOINT_URL (without it, SageMaker
itself is called), LOADTEST_ROWS, LOADTEST_TARGET, LOADTEST_WAIT_SECS; region and credentials as boto3 finds them.
Needs nothing of Polyhost's, so it runs on any machine that has Locust and boto3.
"""

from __future__ import annotations

import csv
import functools
import os
import random
import time
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from locust import User, between, task

ENDPOINT = os.environ.get("LOADTEST_ENDPOINT", "polyhost")
ENDPOINT_URL = os.environ.get("LOADTEST_ENDPOINT_URL") or None
ROWS_FILE = os.environ.get("LOADTEST_ROWS", "rows.csv")
TARGET = os.environ.get("LOADTEST_TARGET", "churn/{state}.tar.gz")
LEAST_SECS, MOST_SECS = map(float, os.environ.get("LOADTEST_WAIT_SECS", "1-3").split("-"))
# Connections of one of Locust's processes: a user has at most one request under way.
MAX_USERS = 1000


@functools.cache
def rows() -> list[tuple[str, str]]:
    """The target model and the request's body for each customer."""
    with open(ROWS_FILE, newline="") as file:
        lines = csv.reader(file)
        next(lines)
        return [(TARGET.format(state=state), ",".join(features)) for state, *features in lines]


@functools.cache
def client() -> Any:
    """One for all users of a process. It never tries again by itself: what failed has failed."""
    session = boto3.Session()
    # A server of one's own without access control takes requests of nobody.
    is_unsigned = ENDPOINT_URL is not None and session.get_credentials() is None
    return session.client(
        "sagemaker-runtime",
        endpoint_url=ENDPOINT_URL,
        region_name=session.region_name or "us-east-1",
        config=Config(
            max_pool_connections=MAX_USERS,
            retries={"total_max_attempts": 1},
            read_timeout=70,
            signature_version=UNSIGNED if is_unsigned else None,
        ),
    )


class Caller(User):
    wait_time = between(LEAST_SECS, MOST_SECS)

    @task
    def predict(self) -> None:
        target, body = random.choice(rows())
        begin = time.perf_counter()
        answer, failure = b"", None
        try:
            response = client().invoke_endpoint(
                EndpointName=ENDPOINT, TargetModel=target, ContentType="text/csv", Body=body
            )
            answer = response["Body"].read()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed request
            failure = error
        self.environment.events.request.fire(
            request_type="boto3",
            name="invoke_endpoint",
            response_time=(time.perf_counter() - begin) * 1000,
            response_length=len(answer),
            exception=failure,
            context={"target": target},
        )
