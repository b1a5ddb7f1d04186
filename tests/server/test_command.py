"""The command as a shell has it: completion, and a server whose settings are in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.server import Process, free_port, request

BIN = Path(sys.executable).parent
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("POLYHOST_", "SAGEMAKER", "AWS"))}


def test_bash_completes() -> None:
    """The script of `polyhost completion bash`, run by bash itself."""
    script = """
        eval "$(polyhost completion bash)"
        COMP_WORDS=(polyhost serve --isolation p) COMP_CWORD=3
        _polyhost_completion polyhost
        echo "${COMPREPLY[@]}"
    """
    environ = {**CLEAN, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=240, check=True)

    assert (done.stdout, done.stderr) == ("process\n", "")


def test_a_server_takes_its_settings_from_a_file(samples_folder: Path, tmp_path: Path) -> None:
    """The endpoint's name and the state are the file's, the port is the command line's, the models the argument's."""
    (tmp_path / "polyhost.toml").write_text(
        f"port = 1\n[endpoint]\nendpoint-name = 'houses'\nstate-dir = '{tmp_path / 'state'}'\n[server]\nfronts = 1\n"
    )
    port = free_port()
    process = Process(
        [sys.executable, "-m", "polyhost", "serve", str(samples_folder), "--config=polyhost.toml", f"--port={port}"],
        {**CLEAN, "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
    )
    try:
        process.wait_for_line("ready on")
        target = {"X-Amzn-SageMaker-Target-Model": "houston.tar.gz", "Content-Type": "text/csv"}
        answer = request(port, "POST", "/endpoints/houses/invocations", "1998,2150,3,2.5,0.4,2", target)
        assert answer.status == 200, answer.text
    finally:
        process.kill_tree()

    assert (tmp_path / "state").is_dir()
