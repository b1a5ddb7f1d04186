"""On which systems models are served. Other commands run wherever Python does."""

from __future__ import annotations

import platform

from polyhost.errors import StartFailed

_NEEDS = (
    "models are served on Linux alone, because their processes are confined, measured and ended by means that only "
    "Linux has."
)
_IMAGE = "run the image by Docker Desktop or Podman, which bring Linux (`make image`, docs/deploy.md)"
_CURES = {"Darwin": f"On a Mac, {_IMAGE}.", "Windows": f"On Windows, use WSL 2, or {_IMAGE}."}


def why_not_here(system: str) -> str | None:
    """`system`: as `platform.system()` names it. No kind of processor is refused: packages for it may be missing."""
    if system == "Linux":
        return None
    cure = _CURES.get(system, f"Use a machine with Linux, or {_IMAGE}.")
    return f"This system is {system or 'unknown'}, and {_NEEDS} {cure}"


def require_linux() -> None:
    """Raises StartFailed."""
    reason = why_not_here(platform.system())
    if reason is not None:
        raise StartFailed(reason)
