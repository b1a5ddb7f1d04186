"""`polyhost demo`: sample models, served to be tried."""
