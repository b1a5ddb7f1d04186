"""
Raw requests of every kind, to the real MMS and to our server: what differs is in exchanges/differences.md.

MMS's answers are recorded; one test asks MMS itself whether they still are its answers.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import MODELS, ROOT, Servers
from http_cases import CASES
from support.raw_http import SHOWN_CHARS, difference, transcripts
from support.server import Process, free_port, request

Transcripts = dict[str, dict[str, Any]]

RECORDING = Path(__file__).parent / "exchanges" / "raw-http.json"
LIST = Path(__file__).parent / "exchanges" / "differences.md"
PAGE = ROOT / "docs" / "raw-http.md"
LOADED = {"mirror": MODELS / "mirror", "noop": MODELS / "noop-v1.0"}


class Row(NamedTuple):
    """A difference that the docs explain, for the cases whose names match."""

    patterns: tuple[str, ...]
    mms: str
    ours: str
    reason: str

    def is_of(self, engine: str) -> bool:
        return engine == "mms" or not self.reason.startswith("With `--engine mms`")

    def explains(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)


def rows_of(page: str) -> list[Row]:
    lines = re.findall(r"^\| (`.+) \| `(.+)` \| `(.+)` \| (.+) \|$", page, re.MULTILINE)
    return [Row(tuple(re.findall(r"`([^`]+)`", cases)), mms, ours, reason) for cases, mms, ours, reason in lines]


@pytest.fixture
def mms_port(servers: Servers, tmp_path: Path) -> Iterator[int]:
    """MMS by its own command, with one port as SageMaker's toolkit gives it, and bodies as they come."""
    servers.stop()
    port = free_port()
    command = str(Path(sys.executable).with_name("multi-model-server"))
    config = tmp_path / "config.properties"
    addresses = [f"{part}_address=http://127.0.0.1:{port}" for part in ("inference", "management")]
    config.write_text("\n".join([*addresses, "decode_input_request=false"]))
    with tempfile.TemporaryDirectory(prefix="mms-") as temp:
        # Java's optimising compiler takes a third of a start's CPU time.
        environ = {**os.environ, "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1", "TEMP": temp, "TMPDIR": temp}
        arguments = ["--start", "--foreground", "--model-store", "/", "--mms-config", str(config)]
        process = Process([command, *arguments], environ, cwd=tmp_path)
        try:
            process.wait_for_line("Model server started")
            yield port
        finally:
            subprocess.run([command, "--stop"], env=environ, check=True, stdout=subprocess.DEVNULL)
            process.kill_tree()


def ask_all(port: int) -> Transcripts:
    for name, folder in LOADED.items():
        target = f"/models?model_name={name}&url={folder}&initial_workers=1&synchronous=true"
        assert request(port, "POST", target).status == 200
    try:
        seen = transcripts(port, CASES)
    finally:
        for name in LOADED:
            request(port, "DELETE", f"/models/{name}")
    # First the path of this checkout goes, then what is too long is cut: the cut must not depend on the path.
    named: Transcripts = json.loads(json.dumps(seen).replace(str(MODELS), "MODELS"))
    for transcript in named.values():
        for answer in transcript["answers"]:
            answer["body"] = answer["body"][:SHOWN_CHARS]
    return named


def recorded() -> Transcripts:
    return json.loads(RECORDING.read_text())


def test_mms_answers_as_recorded(mms_port: int) -> None:
    """POLYHOST_TESTS_RECORD=1 writes the recording instead."""
    seen = ask_all(mms_port)
    raced = {case.name for case in CASES if case.is_raced}
    if os.environ.get("POLYHOST_TESTS_RECORD"):
        kept = recorded() if RECORDING.exists() else {}
        seen |= {name: kept[name] for name in raced & set(kept)}
        RECORDING.write_text(json.dumps(seen, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    known = recorded()

    assert set(known) == {case.name for case in CASES}
    differs = {name: (seen[name], known[name]) for name in seen if name not in raced and seen[name] != known[name]}
    assert differs == {}, json.dumps(differs, indent=1)


def test_our_server_answers_as_mms_or_as_explained(engine: str, servers: Servers) -> None:
    """Each difference has its row, with what both answer; a row without its difference is out of date."""
    server = servers.get(engine, environ={"SAGEMAKER_MULTI_MODEL": "true"})
    seen = ask_all(server.port)
    rows = [row for row in rows_of(LIST.read_text()) if row.is_of(engine)]
    mms = recorded()
    wrong = []
    for name in mms:
        found = difference(mms[name], seen[name])
        explained = {(row.mms, row.ours) for row in rows if row.explains(name)}
        # Behind the front stands MMS itself, which takes some differences away.
        if explained != ({found} if found else set()) and (found or engine == "native"):
            wrong.append(f"| `{name}` | {' | '.join(f'`{part}`' for part in found or ('no difference', ''))} | ? |")

    assert not wrong, "\n".join(["exchanges/differences.md lacks these rows, or has others:", *wrong])


def test_every_row_names_cases_that_there_are() -> None:
    names = [case.name for case in CASES]
    for row in rows_of(LIST.read_text()):
        for pattern in row.patterns:
            assert fnmatch.filter(names, pattern), pattern
        assert len(row.reason.split()) >= 4, row.reason


def test_what_the_docs_show_is_in_the_list() -> None:
    rows = rows_of(LIST.read_text())
    shown = re.findall(r"^\| .+? \| `(.+?)` \| `(.+?)` \| `(.+?)` \| .+ \|$", PAGE.read_text(), re.MULTILINE)

    assert len(shown) > 20
    assert [one for one in shown if one[1:] not in {(row.mms, row.ours) for row in rows if row.explains(one[0])}] == []
