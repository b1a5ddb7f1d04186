"""A running server answers as its own OpenAPI document says: schemathesis makes requests of it, good and bad ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import ENVIRONMENTS, MODELS, Servers
from support.forms import FUZZ_SECS, IS_LONG

SCHEMATHESIS = ENVIRONMENTS / "fuzz" / "bin" / "schemathesis"
# Not asked: that a method which the document lacks is 405, since /ping answers every method as MMS does, and that
# whatever fits the document is accepted, since a load needs a url in the query or in the body.
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance",
)  # fmt: skip


@pytest.mark.skipif(not IS_LONG, reason="it takes a minute: make fuzz and make test LONG=1 run it")
@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason="schemathesis is not installed (scripts/install-fuzz)")
def test_schemathesis_finds_nothing(servers: Servers, tmp_path: Path) -> None:
    server = servers.get("native", environ={"SAGEMAKER_MULTI_MODEL": "true"})
    document = f"http://127.0.0.1:{server.port}/api-description"
    arguments = ["--checks", ",".join(CHECKS), "--max-examples", "30", "--phases", "coverage,fuzzing", "--no-color"]
    if FUZZ_SECS is not None:
        arguments += ["--max-time", str(FUZZ_SECS)]  # it goes on until then
    log = tmp_path / "schemathesis.log"
    with server.loaded("noop", MODELS / "noop-v1.0"), log.open("w") as output:
        command = [SCHEMATHESIS, "run", document, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
            timeout=240 + (FUZZ_SECS or 0),
        )  # fmt: skip

    assert done.returncode == 0, log.read_text()
    assert "generated" in log.read_text()
