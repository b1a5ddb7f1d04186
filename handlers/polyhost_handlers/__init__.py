"""
One file per framework, imported only inside a worker.

Nothing here knows HTTP or the server. Each `*_handler` module has a class that implements
`base.Handler` and a function `handle`, which a stock Multi Model Server can call as
`polyhost_handlers.<module>:handle`.
"""
