"""
AWS's published notebooks, cell by cell in the shape in which their users have them, against Polyhost and moto's S3.

They run in the Python of the SDK that they were written for (scripts/install-sagemaker, scripts/install-sagemaker-v1).
Training has a stand-in in each, and nothing may leave this machine. What is right comes from the frameworks themselves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ENVIRONMENTS, MXNET_PYTHON, ROOT
from support.endpoint import EndpointServer, client, packed, served
from support.lru import lru_hits

# Two SDKs with a Python each: in the first stage tests/endpoint/test_sdk.py asks the newer one.
pytestmark = pytest.mark.second_stage
HERE = Path(__file__).parent
SDK_ENVIRONMENTS = {1: ENVIRONMENTS / "sagemaker-v1", 2: ENVIRONMENTS / "sagemaker"}
SCRIPTS = {1: "scripts/install-sagemaker-v1", 2: "scripts/install-sagemaker"}
ACCOUNT = "123456789012"
BUCKET = f"sagemaker-us-east-1-{ACCOUNT}"
CITIES = {
    "NewYork_NY": "new_york", "LosAngeles_CA": "los_angeles", "Chicago_IL": "chicago", "Houston_TX": "houston",
}  # fmt: skip
NUMBERS = ("YEAR_BUILT", "SQUARE_FEET", "NUM_BEDROOMS", "NUM_BATHROOMS", "LOT_ACRES", "GARAGE_SPACES")
Run = Callable[..., dict[str, Any]]


def needs_sdk(version: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not SDK_ENVIRONMENTS[version].exists() and not os.environ.get("CI"),
        reason=f"version {version} of the SageMaker SDK is not installed ({SCRIPTS[version]})",
    )


@pytest.fixture
def run(aws_url: str, tmp_path: Path) -> Run:
    """A notebook in an empty folder of a user's own; what it holds under the names in the end."""

    def run_(notebook: str, version: int, url: str, *names: str, **environ: str) -> dict[str, Any]:
        done = subprocess.run(
            [
                SDK_ENVIRONMENTS[version] / "bin" / "python", HERE / "run_cells.py", HERE / "published" / notebook,
                *names,
            ],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={
                "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "container"),
                "PYTHONWARNINGS": "ignore", "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
                "AWS_ENDPOINT_URL_SAGEMAKER": url, "AWS_ENDPOINT_URL_S3": aws_url, **environ,
            },
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-6000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    return run_


@pytest.fixture(scope="module")
def bucket_keys(aws_url: str) -> dict[str, str]:
    """What a server needs to read the buckets."""
    return {"AWS_ENDPOINT_URL_S3": aws_url, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}


@pytest.fixture(scope="module")
def server(bucket_keys: dict[str, str]) -> Iterator[EndpointServer]:
    """With nothing but what the notebooks create."""
    with served(None, **bucket_keys) as server:
        yield server


def endpoints(server: EndpointServer, **keys: str) -> list[str]:
    return [one["EndpointName"] for one in server.client("sagemaker", **keys).list_endpoints()["Endpoints"]]


# House values


@pytest.fixture(scope="module")
def houses(samples_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XGBoost model for each city, under the names of the notebooks."""
    folder = tmp_path_factory.mktemp("houses")
    for city, sample in CITIES.items():
        shutil.copy(samples_folder / f"{sample}.tar.gz", folder / f"{city}.tar.gz")
    return folder


@pytest.mark.parametrize(
    "version", [pytest.param(1, marks=needs_sdk(1)), pytest.param(2, marks=needs_sdk(2))], ids=lambda n: f"sdk v{n}"
)
def test_house_values(version: int, run: Run, server: EndpointServer, houses: Path, samples_folder: Path) -> None:
    """The SDK finds bucket and role without AWS; each price is XGBoost's own, that of the city added later too."""
    import xgboost

    name = f"house_values_sdk_v{version}.py"
    saw = run(name, version, server.url, "role", "ACCOUNT_ID", "BUCKET", "predicted", TRAINED=str(houses))

    assert saw["role"].startswith(f"arn:aws:iam::{saw['ACCOUNT_ID']}:role/")
    assert saw["BUCKET"] == f"sagemaker-us-east-1-{saw['ACCOUNT_ID']}"
    assert len(saw["predicted"]) == 15
    assert [target for target, _, _ in saw["predicted"][10:]] == ["NewYork_NY.tar.gz"] * 5
    assert "NewYork_NY.tar.gz" not in {target for target, _, _ in saw["predicted"][:10]}
    for target, house, price in saw["predicted"]:
        sample = CITIES[target.removesuffix(".tar.gz")]
        booster = xgboost.Booster(model_file=samples_folder / sample / "xgboost-model")
        assert price == booster.predict(xgboost.DMatrix(np.array([house])))[0]
    assert endpoints(server) == []


# Networks in a container of one's own


@pytest.mark.mxnet
@needs_sdk(1)
def test_own_container(run: Run, server: EndpointServer, tmp_path: Path) -> None:
    """The five best classes and their probabilities are MXNet's own."""
    made = subprocess.run(
        [MXNET_PYTHON, "-W", "ignore", HERE / "small_networks.py", tmp_path], capture_output=True, text=True, check=True
    )
    right = json.loads(made.stdout)

    saw = run(
        "own_container_sdk_v1.py", 1, server.url, "first", "second", "another", "squeezenet", "results",
        TRAINED=str(tmp_path), PICTURE=str(tmp_path / "picture.png"),
    )  # fmt: skip

    for answer in (saw["first"], saw["second"], saw["another"]):
        assert_same_classes(answer, right["resnet_18"])
    assert_same_classes(saw["squeezenet"], right["squeezenet"])
    assert sum(saw["results"].values()) == 30
    assert set(saw["results"]) <= {saw["first"][0], saw["squeezenet"][0]}
    assert endpoints(server) == []


def assert_same_classes(answer: list[str], right: list[tuple[str, float]]) -> None:
    pairs = [part.removeprefix("probability=").split(", class=") for part in answer]
    assert [name for _, name in pairs] == [name for name, _ in right]
    assert [float(chance) for chance, _ in pairs] == pytest.approx([chance for _, chance in right], abs=2e-6)


# Churn

# For some twenty of the models, which are 51 at each of two endpoints.
CHURN_BUDGET = "1200KiB"


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Customers of 51 states as the public data set has them, and what training leaves for each state."""
    import xgboost

    folder = tmp_path_factory.mktemp("churn")
    random = np.random.default_rng(7)
    columns = ["State", "Account Length", "Int'l Plan", "VMail Plan", "Day Mins", "Eve Mins", "CustServ Calls"]
    rows = []
    for number in range(51):
        state = chr(65 + number // 26) + chr(65 + number % 26)
        months, service = random.integers(1, 200, 60), random.poisson(1.5, 60)
        plans = random.random((2, 60)) < 0.3
        day, evening = random.normal(180, 50, (2, 60)).round(1)
        features = np.column_stack([months, *plans, day, evening, service])
        left = random.random(60) < 1 / (1 + np.exp(2.5 - service - 2 * plans[0]))
        settings = {"objective": "binary:logistic", "nthread": 1, "tree_method": "exact", "min_child_weight": 0}
        booster = xgboost.train(settings, xgboost.DMatrix(features, left), 150)
        (folder / state).mkdir()
        booster.save_model(folder / state / "model.ubj")
        (folder / state / "model.ubj").rename(folder / state / "xgboost-model")
        packed(folder / state, folder / f"churn-{state}.tar.gz")
        words = np.where(plans, "yes", "no")
        rows += [",".join(map(str, (state, *row))) for row in zip(months, *words, day, evening, service, strict=True)]
    (folder / "churn.txt").write_text("\n".join([",".join(columns), *rows]) + "\n")
    return folder


@needs_sdk(2)
def test_churn_at_two_endpoints(run: Run, bucket_keys: dict[str, str], churn: Path) -> None:
    """
    Rows with blanks after their commas, a ModelDataUrl without a slash at its end: each chance is XGBoost's own.

    There is memory for some of the models: the least recently used of either endpoint makes room.
    """
    import xgboost

    with served(None, "--memory-budget", CHURN_BUDGET, **bucket_keys) as server:
        saw = run("churn_sdk_v2.py", 2, server.url, "endpoint_name", "endpoint_name_2", "predicted", TRAINED=str(churn))
        assert endpoints(server) == []
    line = re.compile(r"InvokeEndpoint endpoint=(\S+) \S+ target=churn-xgb-(\S+)\.tar\.gz .*loaded=(hit|miss)")
    calls = line.findall(server.process.log)
    trace = [(name, state) for name, state, _ in calls]
    hits = sum(found == "hit" for *_, found in calls)
    # How many fit varies while it runs: a model that comes again is compiled already, and takes less.
    assert 0 < hits < lru_hits(trace, len(trace))

    names = [saw["endpoint_name"], saw["endpoint_name_2"]]
    assert trace == [(name, state) for name, state, *_ in saw["predicted"]]
    assert [name for name, _ in trace] == [name for name in names for _ in range(100)]
    for _, state, features, chance in saw["predicted"]:
        booster = xgboost.Booster(model_file=churn / state / "xgboost-model")
        assert chance == booster.predict(xgboost.DMatrix(np.array([features], dtype=float)))[0]


# The pipeline, and a role for one city's models


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("pipeline"))


class Pipeline:
    """What training leaves: a preprocessor of pandas' columns, and for each city a linear learner of its output."""

    def __init__(self, folder: Path) -> None:
        import joblib
        import pandas as pd
        from polyhost.demo import models as sample_models
        from sklearn.compose import ColumnTransformer
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        self.folder = folder
        random = np.random.default_rng(3)
        self._columns = [*NUMBERS, "FRONT_PORCH", "DECK"]
        numbers, _ = sample_models.houses("houston")
        words = random.choice(["y", "n"], (len(numbers), 2))
        table = pd.DataFrame(numbers, columns=NUMBERS).assign(FRONT_PORCH=words[:, 0], DECK=words[:, 1])
        self._preprocessor = ColumnTransformer(
            [
                ("num", StandardScaler(), list(NUMBERS)),
                ("cat", OneHotEncoder(handle_unknown="ignore"), self._columns[6:]),
            ],
            remainder="drop",
        )
        self._preprocessor.fit(table)
        (folder / "preprocessor").mkdir()
        joblib.dump(self._preprocessor, folder / "preprocessor" / "model.joblib")
        packed(folder / "preprocessor", folder / "preprocessor.tar.gz")
        self._weights = {city: (random.normal(0, 50_000, 10), float(random.normal(400_000, 9_000))) for city in CITIES}
        for city, (weight, bias) in self._weights.items():
            (folder / city).mkdir()
            sample_models.linear_learner(folder / city, weight, bias)
            packed(folder / city, folder / f"linear-{city}.tar.gz")

    def price(self, city: str, house: list[Any]) -> float:
        """By scikit-learn and numpy."""
        import pandas as pd

        weight, bias = self._weights[city]
        ready = self._preprocessor.transform(pd.DataFrame([house], columns=self._columns))
        return float((ready.astype(np.float32) @ weight.astype(np.float32) + np.float32(bias))[0])


OWNER = {"aws_access_key_id": "AKIAEXAMPLEOWNER0000", "aws_secret_access_key": "replace-me-000000000000000000000owner"}


@pytest.fixture
def auth_file(tmp_path: Path) -> Path:
    """Who runs the notebook may do all at SageMaker, in a role: as on a notebook instance."""
    file = tmp_path / "principals.json"
    user = {"name": "owner", "access_key_id": OWNER["aws_access_key_id"]}
    full = "arn:aws:iam::aws:policy/AmazonSageMakerFullAccess"
    content = {
        "account_id": ACCOUNT,
        "users": [{**user, "secret_access_key": OWNER["aws_secret_access_key"], "policies": [full]}],
        "roles": [{"name": "notebook", "may_be_assumed_by": ["owner"], "policies": [full]}],
    }
    file.write_text(json.dumps(content))
    file.chmod(0o600)
    return file


@pytest.fixture
def profile(tmp_path: Path) -> dict[str, str]:
    """The AWS settings of whoever runs the notebook: boto3 assumes the role by itself."""
    (tmp_path / "config").write_text(
        f"[profile notebook]\nrole_arn = arn:aws:iam::{ACCOUNT}:role/notebook\nsource_profile = owner\n"
        "region = us-east-1\n"
    )
    keys = "".join(f"{name} = {value}\n" for name, value in OWNER.items())
    (tmp_path / "credentials").write_text(f"[owner]\n{keys}")
    return {
        "AWS_PROFILE": "notebook",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
    }


@needs_sdk(1)
def test_pipeline_and_a_role(
    run: Run, pipeline: Pipeline, auth_file: Path, profile: dict[str, str], aws_url: str, bucket_keys: dict[str, str]
) -> None:
    """AWS's script before a linear learner; the role that IAM has got reaches New York's models alone."""
    with served(None, "--auth", "sigv4", "--auth-file", str(auth_file), **bucket_keys) as server:
        saw = run(
            "pipeline_sdk_v1.py", 1, server.url, "role", "BUCKET", "predicted", "refused", "assumed_role_arn",
            TRAINED=str(pipeline.folder), PREPROCESSOR=str(HERE / "published" / "preprocessor.py"),
            AWS_ENDPOINT_URL_IAM=aws_url, POLYHOST=str(Path(sys.executable).with_name("polyhost")),
            POLYHOST_AUTH_FILE=str(auth_file), **profile,
        )  # fmt: skip

        assert (saw["role"], saw["BUCKET"]) == (f"arn:aws:iam::{ACCOUNT}:role/notebook", BUCKET)
        assert len(saw["predicted"]) == 10 + 1 + 20 + 1
        for target, house, price in saw["predicted"]:
            assert price == pytest.approx(pipeline.price(target.partition("/")[0], house), rel=1e-5)
        kind, text = saw["refused"]
        assert (kind, "AccessDeniedException" in text) == ("ClientError", True)
        assert f"User: {saw['assumed_role_arn']} is not authorized" in text
        assert endpoints(server, **OWNER) == []
    assert not client("iam", aws_url, **OWNER).list_roles()["Roles"]
