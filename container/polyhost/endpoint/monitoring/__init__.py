"""The server's own metrics, minute by minute, for who reads them as CloudWatch's: kept, and put together."""

from polyhost.endpoint.monitoring.monitoring import Monitoring
from polyhost.endpoint.monitoring.reads import OPERATIONS, MonitoringError

__all__ = ["OPERATIONS", "Monitoring", "MonitoringError"]
