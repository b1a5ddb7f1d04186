"""What a server is told, whichever command was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polyhost.config import Config
from polyhost.engine.protocol import Registration
from polyhost.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a server is to do, with either engine. `environ` is that of its workers."""

    config: Config
    environ: Mapping[str, str]
    limits: Limits
    # Loaded before the server listens. A single one is what /invocations means.
    startup: tuple[Registration, ...] = ()
    # What urls that are no absolute paths are relative to.
    model_store: Path = Path("/")
    # Host and port of the management API, if they are not those of predictions.
    management: tuple[str, int] | None = None

    # The server's whole environment, if it does what SageMaker does around a container; None if it does not.
    endpoints_environ: Mapping[str, str] | None = None

    # Where systemd waits to be told that the server is ready, "" if nobody does.
    notify_socket: str = ""

    # What somebody at a terminal reads when the server is ready, "" if nobody does.
    greeting: str = ""

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens, predictions first."""
        return [(self.config.host, self.config.port), *([self.management] if self.management else [])]

    @property
    def is_hidden(self) -> bool:
        """Whether nobody but root may look into the server's processes: they have what models must not see."""
        return self.endpoints_environ is not None or self.config.hardened
