"""
A handler of the shape that AWS's bring-your-own-container sample for multi-model endpoints has.

Module-level service, `handle(data, context)`, names relative to the model's folder, pictures by MXNet itself.
"""

import collections
import glob
import json
import os

import mxnet as mx
import numpy as np


class PictureService:
    def __init__(self):
        self.initialized = False

    def initialize(self, context):
        self.initialized = True
        model_dir = context.system_properties.get("model_dir")
        symbol_file = os.path.basename(glob.glob(f"{model_dir}/*-symbol.json")[0])
        prefix = symbol_file[: -len("-symbol.json")]
        with open(os.path.join(model_dir, f"{prefix}-shapes.json")) as file:
            shapes = [(item["name"], tuple(item["shape"])) for item in json.load(file)]
        symbol, arguments, auxiliaries = mx.model.load_checkpoint(prefix, 0)
        self.module = mx.mod.Module(symbol=symbol, context=mx.cpu(), label_names=None)
        self.module.bind(for_training=False, data_shapes=shapes, label_shapes=self.module._label_shapes)
        self.module.set_params(arguments, auxiliaries, allow_missing=True)
        with open("synset.txt") as file:
            self.labels = [line.rstrip() for line in file]

    def handle(self, data, context):
        pictures = []
        for request in data:
            picture = mx.image.imresize(mx.img.imdecode(request.get("body")), 224, 224)
            pictures.append(picture.transpose((2, 0, 1)).expand_dims(axis=0))
        batch = collections.namedtuple("Batch", ["data"])  # noqa: PYI024 - as the sample has it
        self.module.forward(batch(pictures))
        scores = np.squeeze(self.module.get_outputs()[0].asnumpy())
        best = np.argsort(scores)[::-1][0:5]
        return [[f"probability={scores[number]:f}, class={self.labels[number]}" for number in best]]


_service = PictureService()


def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)
    if data is None:
        return None
    return _service.handle(data, context)
