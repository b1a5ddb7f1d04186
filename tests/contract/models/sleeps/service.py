"""Takes as many seconds as it is told."""

import time


def handle(data, context):
    if data is None:
        return None
    time.sleep(float(bytes(data[0]["body"])))
    return ["awake"]
