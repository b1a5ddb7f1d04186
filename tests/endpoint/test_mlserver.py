"""MLServer's own codecs, in an environment of their own, which is made for it: `make test LONG=1`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.endpoint import served
from support.forms import by_form

CASES = Path(__file__).parent / "mlserver_cases.py"
# The last release, and what it was made for.
PACKAGES = ("mlserver==1.7.1", "pandas<3")
HOUSES = "1998,2150,3,2.5,0.4,2\n1951,900,2,1.1,0.1,0"
pytestmark = pytest.mark.skipif(
    not by_form(short=0, long=1), reason="an environment of two hundred megabytes is made in the long form alone"
)


def test_mlservers_codecs_are_understood_both_ways(samples_folder: Path, tmp_path: Path) -> None:
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True, timeout=60)
    subprocess.run([python, "-m", "pip", "install", "-q", "--only-binary", ":all:", *PACKAGES], check=True, timeout=240)
    with served(samples_folder) as server:
        command = [python, "-W", "ignore", CASES, server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        prices = json.loads(server.predict("boston.tar.gz", HOUSES))
        rows = "1998,2150,3,2.5,0.4,2,y,n\n1951,900,2,1.1,0.1,0,n,y"
        columns = json.loads(server.predict("house_preprocessor.tar.gz", rows, Accept="application/json"))

    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"rows": prices, "columns": columns, "frame": {"predict": prices}}
