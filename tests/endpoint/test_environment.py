"""Which variables reach which process behind an endpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest
from polyhost.config import Config
from polyhost.engine.native.variables import environment_for, template_variables, worker_variables
from polyhost.environment import container_environ, definition_environ
from support.endpoint import EndpointServer
from support.hostile import done_by, pack_hostile
from support.tree import living

PASSED = {
    "PATH": "/bin", "HOME": "/root", "LANG": "C.UTF-8", "LC_ALL": "C", "TZ": "UTC", "TMPDIR": "/tmp",
    "SSL_CERT_FILE": "/ca.pem", "OMP_NUM_THREADS": "2", "PYTHONPATH": "/lib", "LD_LIBRARY_PATH": "/cuda",
    "AWS_REGION": "eu-west-1", "SAGEMAKER_PROGRAM": "serve.py", "POLYHOST_LIBSVM_FIRST_INDEX": "1",
    "POLYHOST_MXNET_PYTHON": "/envs/mxnet/bin/python", "MXNET_CPU_WORKER_NTHREADS": "1",
}  # fmt: skip
KEPT_BACK = {
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token",
    "AWS_PROFILE": "prod", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials", "DB_PASSWORD": "secret",
    "https_proxy": "http://user:secret@proxy", "HTTPS_PROXY": "http://user:secret@proxy", "LD_SDK_KEY": "secret",
    "PYTHON_TOKEN": "secret", "HF_TOKEN": "secret", "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "POLYHOST_AUTH_FILE": "/etc/principals.json", "POLYHOST_STATE_DIR": "/state", "POLYHOST_PASS_ENV": "NONE",
    "MMS_KEYSTORE_PASS": "secret", "JAVA_HOME": "/java",
}  # fmt: skip


def test_models_see_what_a_process_needs_and_no_secret() -> None:
    told = container_environ(Config(models="/m/"), {**PASSED, **KEPT_BACK})
    assert told == {**PASSED, "SAGEMAKER_MULTI_MODEL": "true"}


def test_the_operator_passes_more_by_name() -> None:
    told = container_environ(Config(models="/m/", pass_env=("HF_TOKEN", "AWS_PROFILE")), KEPT_BACK)
    assert told == {"HF_TOKEN": "secret", "AWS_PROFILE": "prod", "SAGEMAKER_MULTI_MODEL": "true"}


def test_mms_itself_gets_its_java_and_its_properties() -> None:
    told = container_environ(Config(models="/m/", engine="mms"), KEPT_BACK)
    assert told == {"JAVA_HOME": "/java", "MMS_KEYSTORE_PASS": "secret", "SAGEMAKER_MULTI_MODEL": "true"}


def test_a_container_definition_sets_nothing_of_the_servers() -> None:
    given = {"POLYHOST_HANDLER": "xgboost", "POLYHOST_ENVIRONMENT": "mxnet", "SAYS": "hello"}
    others = {
        "POLYHOST_ENVIRONMENTS": "/model/evil",
        "POLYHOST_MXNET_PYTHON": "/model/evil",
        "POLYHOST_AUTH": "off",
        "POLYHOST_MEMORY_BOOK": "/book",
    }
    assert definition_environ({**given, **others}) == given


def test_the_old_name_of_a_containers_environment_counts() -> None:
    """As deployed definitions have it."""
    assert definition_environ({"POLYHOST_HANDLER_ENVIRONMENT": "mxnet"}) == {"POLYHOST_ENVIRONMENT": "mxnet"}
    both = {"POLYHOST_HANDLER_ENVIRONMENT": "mxnet", "POLYHOST_ENVIRONMENT": "sklearn-1.2"}
    assert definition_environ(both) == {"POLYHOST_ENVIRONMENT": "sklearn-1.2"}


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PYTHONPATH", "PYTHONSTARTUP"])
def test_what_changes_the_interpreter_is_for_code_alone(name: str) -> None:
    variables = ((name, "/model"), ("SAYS", "hello"))
    code, data = (environment_for("", variables, has_code=has_code) for has_code in (True, False))
    assert code != data
    assert template_variables(code, is_hardened=False) == {name: "/model", "SAYS": "hello"}
    assert template_variables(data, is_hardened=False) == {"SAYS": "hello"}


def test_a_hardened_template_runs_nothing_that_a_container_names() -> None:
    """A variable may name a library to load; a number of threads runs nothing, and is read at the import."""
    variables = (("LD_PRELOAD", "/model/evil.so"), ("OMP_NUM_THREADS", "2"), ("OPENSSL_CONF", "/model"), ("SAYS", "hi"))
    code = environment_for("", variables, has_code=True)
    assert template_variables(code, is_hardened=True) == {"OMP_NUM_THREADS": "2"}
    assert worker_variables(code) == variables


def test_code_and_data_share_a_template_where_nothing_differs() -> None:
    variables = (("SAYS", "hello"),)
    assert environment_for("", variables, has_code=True) == environment_for("", variables, has_code=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointServer]:
    folder = tmp_path_factory.mktemp("variables")
    pack_hostile(folder / "source", folder / "models" / "any.tar.gz")
    environ = {**{name: value for name, value in KEPT_BACK.items() if not name.startswith("POLYHOST")}, "MORE": "yes"}
    server = EndpointServer("native", folder / "models", "--pass-env", "MORE", environ=environ)
    server.models = folder / "models"
    yield server
    assert server.stop() == 0, server.process.log


def test_a_model_finds_no_secret_in_its_own_environment(server: EndpointServer) -> None:
    seen = done_by(server, "any.tar.gz", "import os; answer = dict(os.environ)")
    assert seen["MORE"] == "yes"
    assert seen["PATH"] == os.environ["PATH"]
    assert not set(KEPT_BACK) & set(seen)
    assert [name for name in seen if name.startswith("POLYHOST_")] == ["POLYHOST_LOG_FORMAT"]


def test_a_containers_variables_stay_in_its_own_processes(server: EndpointServer) -> None:
    """Not in the front, the fetcher, or another container's processes, as root would read them."""
    environment = {"OF_ONE": "one's secret", "PYTHONPATH": "/model", "POLYHOST_MXNET_PYTHON": "/evil"}
    server.deploy("one", "/", Mode="MultiModel", Environment=environment)
    server.deploy("other", "/", Mode="MultiModel", Environment={"OF_OTHER": "other's secret"})
    for name in ("one", "other"):
        seen = done_by(server, "any.tar.gz", "import os; answer = dict(os.environ)", EndpointName=name)
        assert seen[f"OF_{name.upper()}"] == f"{name}'s secret"
        assert "POLYHOST_MXNET_PYTHON" not in seen
        assert ("PYTHONPATH" in seen and seen["PYTHONPATH"] == "/model") is (name == "one")

    front = psutil.Process(server.process.pid)
    processes = [front, *living(server)]
    fetchers = [process for process in processes if any("fetcher" in word for word in process.cmdline())]
    holders = [process for process in processes if "OF_ONE" in process.environ()]
    assert fetchers
    assert holders
    assert not {front, *fetchers} & set(holders)
    assert not any({"OF_OTHER", *KEPT_BACK} & set(process.environ()) for process in holders)
