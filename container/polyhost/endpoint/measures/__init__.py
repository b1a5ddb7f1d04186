"""What is counted and measured of endpoints: for Prometheus, CloudWatch, the access log and the dashboard."""

from polyhost.endpoint.measures.access_log import access_log
from polyhost.endpoint.measures.histogram import Histogram
from polyhost.endpoint.measures.measures import Calls, Event, Measures, Recent, Snapshot, Totals
from polyhost.endpoint.measures.tallies import Gauges

__all__ = ["Calls", "Event", "Gauges", "Histogram", "Measures", "Recent", "Snapshot", "Totals", "access_log"]
