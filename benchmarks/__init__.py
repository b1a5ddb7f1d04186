"""Polyhost's native engine beside the real Multi Model Server: `make bench`."""
