"""Answers OK to everything."""


def handle(data, context):
    if data is None:
        return None
    for index in range(len(data)):
        context.set_response_content_type(index, "text/plain")
    return ["OK"] * len(data)
