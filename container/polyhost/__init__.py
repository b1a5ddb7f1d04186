"""Polyhost: thousands of machine-learning models behind one endpoint."""

__version__ = "0.1.0"
