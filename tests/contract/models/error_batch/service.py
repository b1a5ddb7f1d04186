"""Sets a status of its own for the first request of each batch."""


def handle(data, context):
    if data is None:
        return None
    context.set_response_status(code=507, idx=0)
    return ["Invalid response"] * len(data)
