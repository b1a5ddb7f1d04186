"""The machine, the versions, and the Python environments that are not the benchmark's own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil

_PACKAGES = (
    "polyhost", "multi-model-server", "sagemaker-inference", "xgboost-cpu", "numpy", "uvloop", "httptools",
)  # fmt: skip
# With uvloop 0.22, which gives no event loop unasked, the workers of MLServer 1.7.1 end as soon as they start.
_MLSERVER_PACKAGES = ("mlserver", "mlserver-xgboost", "uvloop<0.22")
_INSTALL_SECS = 900


def machine() -> dict[str, str]:
    """What the figures depend on; nothing that names the machine."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 1024**3:.1f} GiB",
        "system": f"{platform.freedesktop_os_release().get('PRETTY_NAME', 'Linux')}, Linux {_kernel()}",
        "python": platform.python_version(),
    }


def _kernel() -> str:
    """Its number; what a distributor or host appends says nothing about figures."""
    return ".".join(platform.release().split("-")[0].split(".")[:2])


def versions(mlserver: Path | str) -> dict[str, str]:
    found = {package: importlib.metadata.version(package) for package in _PACKAGES}
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    quoted = re.search(r'"(.*?)"', java)
    found["java"] = quoted[1] if quoted else "unknown"
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    found["wrk"] = wrk.split()[1].removeprefix("debian/") if len(wrk.split()) > 1 else "unknown"
    if isinstance(mlserver, Path):
        found.update(_versions_in(mlserver, ("mlserver", "xgboost")))
    return found


def revision() -> str:
    """Of the checkout that is measured, "" where there is none."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def mxnet_environment() -> Path | str:
    """Where MXNet and an MMS to run in it are installed, or why they are not."""
    folder = Path(sys.prefix) / "envs" / "mxnet-1.9"
    if (folder / "bin" / "multi-model-server").exists():
        return folder
    return "MXNet's environment is not installed (scripts/install-mxnet)."


def mlserver_environment(folder: Path) -> Path | str:
    """MLServer in an environment of its own, installed now if it is not there; or why that did not work."""
    if (folder / ".complete").exists():
        return folder
    print("installing MLServer into an environment of its own: minutes, the first time", flush=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([*pip, *_MLSERVER_PACKAGES], check=True, timeout=_INSTALL_SECS)
    except (subprocess.SubprocessError, OSError):
        return f"pip could not install it for Python {platform.python_version()}."
    (folder / ".complete").touch()
    return folder


def _versions_in(folder: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions in another environment; a package that this environment has too is told as MLServer's."""
    code = (
        "import importlib.metadata, json, sys; print(json.dumps([importlib.metadata.version(p) for p in sys.argv[1:]]))"
    )
    ran = subprocess.run([str(folder / "bin" / "python"), "-c", code, *packages], capture_output=True, check=True)
    told = dict(zip(packages, json.loads(ran.stdout), strict=True))
    return {name if name == "mlserver" else f"{name} (MLServer's)": version for name, version in told.items()}
