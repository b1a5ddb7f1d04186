"""Where there is no Linux, commands that serve models end with a sentence, and the others work."""

from __future__ import annotations

import subprocess
import sys

import pytest
from polyhost.system import why_not_here

# What Python has only on Unix, and what is built only there.
UNIX_ALONE = ("fcntl", "grp", "pwd", "resource", "termios", "uvloop")
# A Python as another system has it, and then the command.
PREAMBLE = """
import platform, signal, sys
platform.system = lambda: {system!r}
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {missing!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Missing())
for name in {missing!r}:
    sys.modules.pop(name, None)
if {missing!r}:
    del signal.pthread_sigmask
from polyhost.cli import main
sys.argv = ["polyhost", *{arguments!r}]
main()
"""


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("Linux", None),
        ("Darwin", "This system is Darwin, and models are served on Linux alone"),
        ("Darwin", "On a Mac, run the image by Docker Desktop or Podman"),
        ("Windows", "On Windows, use WSL 2"),
        ("FreeBSD", "This system is FreeBSD"),
        ("FreeBSD", "Use a machine with Linux, or run the image"),
        ("", "This system is unknown"),
    ],
)
def test_where_models_are_served(system: str, words: str | None) -> None:
    reason = why_not_here(system)
    assert (reason is None) == (words is None)
    assert words is None or words in str(reason)


def run_on(system: str, missing: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = PREAMBLE.format(system=system, missing=missing, arguments=arguments)
    return subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("system", "missing"), [("Darwin", ("uvloop",)), ("Windows", UNIX_ALONE)])
def test_the_command_says_so_before_it_does_anything(system: str, missing: tuple[str, ...]) -> None:
    """It does not end with a module that is not there."""
    for arguments in (("serve", "models"), ("demo",), ("size", "models")):
        result = run_on(system, missing, *arguments)
        assert result.stderr.startswith(f"polyhost: This system is {system}, and models are served on Linux alone")
        assert (result.returncode, result.stdout) == (5, "")
    result = run_on(system, missing, "key", "new")
    assert (result.returncode, result.stdout[:4]) == (0, "phk_"), result.stderr
