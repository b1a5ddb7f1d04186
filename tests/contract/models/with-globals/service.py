"""The public bring-your-own style: a service in a module global, files opened by their bare names."""


class ModelHandler:
    def __init__(self):
        self.initialized = False

    def initialize(self, context):
        with open("greeting.txt") as file:
            self.greeting = file.read().strip()
        self.initialized = True

    def handle(self, data, context):
        with open("greeting.txt") as file:
            return [f"{self.greeting} {file.read().strip()}"] * len(data)


_service = ModelHandler()


def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.handle(data, context)
