"""
`polyhost size`: how much memory a fleet of models needs, and what it costs.

sample.py starts a server of its own and measures some of the models; fleet.py says from that what all of them are
like; simulate.py replays traffic in a cache, and costs.py compares hosts; both are arithmetic only. The server itself
imports nothing of this.
"""
