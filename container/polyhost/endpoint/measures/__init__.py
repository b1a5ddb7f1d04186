"""What is counted and measured of endpoints: for Prometheus, CloudWatch, the access log and the dashboard."""

from polyhost.endpoint.measures.measures import Call, Event, Measures, Recent, Snapshot, Totals
from polyhost.endpoint.measures.tallies import Gauges

__all__ = ["Call", "Event", "Gauges", "Measures", "Recent", "Snapshot", "Totals"]
