"""The control plane: models, endpoint configurations and endpoints that clients make."""

from polyhost.endpoint.hosting.hosting import Hosting, HostingError

__all__ = ["Hosting", "HostingError"]
