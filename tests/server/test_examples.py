"""The examples work as their READMEs say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from support.server import Server


def test_a_pytorch_model_is_served_by_script(server: Server, tmp_path: Path) -> None:
    """examples/pytorch, with torch where the server runs."""
    pytest.importorskip("torch", reason="torch is not installed (pip install torch)")
    subprocess.run([sys.executable, ROOT / "examples" / "pytorch" / "train.py", tmp_path / "torch"], check=True)
    with server.loaded("torch", tmp_path / "torch") as invoke:
        answer = invoke("[[1.0, 2.0], [3.0, 4.0]]", "application/json")

        assert [row[0] for row in answer.json()] == pytest.approx([5, 11], abs=0.1)


def test_the_handlers_of_the_docs_run(server: Server, tmp_path: Path) -> None:
    """docs/own-code.md: both files, as they stand there."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs" / "own-code.md").read_text(), re.DOTALL)
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "factor.txt").write_text("2.5")

    with server.loaded("shout", tmp_path / "model", handler=f"{tmp_path}/shout.py:handle") as invoke:
        assert invoke("hello").text == "HELLO"
    with server.loaded("doubler", tmp_path / "model", handler=f"{tmp_path}/doubler.py:handle") as invoke:
        assert json.loads(invoke("2\n4").body) == [5.0, 10.0]
        answer = invoke("2,3")
        assert (answer.status, answer.message) == (400, "Each row has 2 fields, one is due.")
