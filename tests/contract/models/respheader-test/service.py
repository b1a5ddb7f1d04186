"""Sets a header and the content type of its answer."""


def handle(data, context):
    if data is None:
        return None
    for index in range(len(data)):
        context.set_response_header(index, "dummy", "1")
        context.set_response_content_type(index, "text/plain")
    return ["[{}]"] * len(data)
