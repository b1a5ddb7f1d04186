"""
More fronts: processes that speak HTTP on the server's port, beside the server's own.

The server's own process is their keeper. They answer what it has leased to them, and ask it everything else.
"""
