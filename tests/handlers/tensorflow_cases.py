"""Asks TensorFlow's handler in its own environment: `python tensorflow_cases.py FOLDER`; the last line is JSON."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from polyhost_handlers.artifacts import recognise
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import HandlerError
from polyhost_handlers.tensorflow_handler import TensorFlowHandler

ROWS = np.array([[0.1, -2.0, 3.5], [1.0, 0.25, -0.75]], dtype="float32")
TOKENS = np.array([[1, 4], [0, 3]], dtype="int64")
LOAD = """
import sys
from pathlib import Path
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import HandlerError
from polyhost_handlers.tensorflow_handler import TensorFlowHandler
for folder in sys.argv[1:]:
    try:
        TensorFlowHandler.load(ModelSource(Path(folder), "m", {})).predict(Request(b"[[1, 2, 3]]", "application/json"))
        print("answered")
    except HandlerError as error:
        print(error.message)
"""


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(tf.random.normal((3, 2), seed=1))

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])
    def plain(self, x):
        return {"scores": tf.nn.softmax(x @ self.weight)}

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32), tf.TensorSpec((None,), tf.int64)])
    def several(self, x, n):
        return {"sum": tf.reduce_sum(x, 1), "n": n * 2}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="text")])
    def texts(self, text):
        return {"upper": tf.strings.upper(text), "raw_bytes": text}

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])
    def total(self, x):
        return {"total": tf.reduce_sum(x)}


def put_saved_model(folder):
    module = Module()
    for version in ("1", "12", "3"):
        module.weight.assign_add(tf.ones_like(module.weight))
        module.weight.assign(module.weight * [[1.0, float(version)]])
        names = {"serving_default": module.plain} | {
            name: getattr(module, name) for name in ("several", "texts", "total")
        }
        tf.saved_model.save(module, str(folder / "export" / "Servo" / version), signatures=names)
    return tf.saved_model.load(str(folder / "export" / "Servo" / "12")).signatures


def keras_models():
    numbers, tokens = keras.Input((3,), name="numbers"), keras.Input((2,), dtype="int64", name="tokens")
    hidden = keras.layers.Dense(4, activation="gelu")(numbers)
    plain = keras.Model(numbers, keras.layers.Dense(2, activation="softmax", name="scores")(hidden))
    table = keras.layers.Flatten(name="table")(keras.layers.Embedding(5, 2)(tokens))
    several = keras.Model([numbers, tokens], [plain(numbers), table])
    image = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3), keras.layers.GlobalMaxPooling2D()])
    return plain, several, image


def saved(folder, save, name="model.keras"):
    folder.mkdir()
    save(str(folder / name))
    assert recognise(folder, {}).name == "tensorflow"
    return TensorFlowHandler.load(ModelSource(folder, "m", {}))


def asked(model, body, content_type="application/json", accept="", **headers):
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        answer = model.predict(Request(sent, content_type, accept, headers))
    except HandlerError as error:
        return [error.status, error.message]
    if accept == "application/x-npy":
        return np.load(io.BytesIO(answer.body)).tolist()
    return answer.body.decode() if accept else json.loads(answer.body)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def csv(rows):
    return "\n".join(",".join(map(repr, row)) for row in rows)


def of_saved_model(folder):
    signatures = put_saved_model(folder / "saved")
    assert recognise(folder / "saved", {}).name == "tensorflow"
    model = TensorFlowHandler.load(ModelSource(folder / "saved", "m", {}))
    expected = signatures["serving_default"](x=tf.constant(ROWS))["scores"].numpy().tolist()
    rows, lines = ROWS.tolist(), csv(ROWS.tolist()).encode()
    both = {
        "signature_name": "several",
        "instances": [{"x": row, "n": n} for row, n in zip(rows, [5, 2**60], strict=True)],
    }
    columns = {"signature_name": "several", "inputs": {"x": rows, "n": [5, 2**60]}}
    sums = signatures["several"](x=tf.constant(ROWS), n=tf.constant([5, 2**60]))["sum"].numpy().tolist()
    texts = {"signature_name": "texts", "instances": [{"text": "a,b"}, {"text": {"b64": "/w=="}}]}
    return {
        "instances": [asked(model, {"instances": rows}), {"predictions": expected}],
        "instances by name": [asked(model, {"instances": [{"x": row} for row in rows]}), {"predictions": expected}],
        "inputs": [asked(model, {"inputs": rows}), {"outputs": expected}],
        "inputs by name": [asked(model, {"inputs": {"x": rows}}), {"outputs": expected}],
        "named signature": [asked(model, {"signature_name": "serving_default", "inputs": rows}), {"outputs": expected}],
        "lists alone": [asked(model, rows), {"predictions": expected}],
        "JSON lines": [asked(model, b"\n".join(json.dumps(row).encode() for row in rows), "application/jsonlines"),
                       {"predictions": expected}],
        "CSV": [asked(model, lines, "text/csv"), {"predictions": expected}],
        "npy": [asked(model, npy(ROWS), "application/x-npy"), {"predictions": expected}],
        "as CSV": [asked(model, {"instances": rows}, accept="text/csv"), csv(expected)],
        "as npy": [asked(model, {"instances": rows}, accept="application/x-npy"), expected],
        "several": [asked(model, both), {"predictions": [{"n": 10, "sum": sums[0]}, {"n": 2**61, "sum": sums[1]}]}],
        "several columns": [asked(model, columns), {"outputs": {"n": [10, 2**61], "sum": sums}}],
        "texts": [asked(model, texts), {"predictions": [
            {"raw_bytes": {"b64": "YSxi"}, "upper": "A,B"}, {"raw_bytes": {"b64": "/w=="}, "upper": "�"}]}],
        "total": [asked(model, {"signature_name": "total", "inputs": [[1, 2, 3.5]]}), {"outputs": 6.5}],
    }  # fmt: skip


def of_keras(folder):
    plain, several, image = keras_models()
    expected = plain.predict(ROWS, verbose=0).tolist()
    alone = plain.predict(ROWS[:1], verbose=0).tolist()
    scores, table = (array.tolist() for array in several.predict([ROWS, TOKENS], verbose=0))
    pixels = np.linspace(0, 1, 32, dtype="float32").reshape(2, 4, 4, 1)
    of_pixels = image.predict(pixels, verbose=0).tolist()
    found = {}
    for name in ("model.keras", "model.h5"):
        handler = saved(folder / name.replace(".", "_"), plain.save, name)
        found[name] = [asked(handler, {"instances": ROWS.tolist()}), {"predictions": expected}]
    exported = saved(folder / "exported", plain.export, "1")
    two = saved(folder / "two", several.save)
    conv = saved(folder / "conv", image.save)
    as_records = [{"numbers": row, "tokens": more} for row, more in zip(ROWS.tolist(), TOKENS.tolist(), strict=True)]
    first, second = two._signatures["serving_default"].run({"numbers": ROWS, "tokens": TOKENS})
    rows = [{first: a, second: b} for a, b in zip(scores, table, strict=True)]
    return {
        **found,
        "CSV of one row": [asked(handler, csv(ROWS[:1].tolist()).encode(), "text/csv"), {"predictions": alone}],
        "exported by Keras": [asked(exported, {"instances": ROWS.tolist()}), {"predictions": expected}],
        "two inputs": [asked(two, {"instances": as_records}), {"predictions": rows}],
        "image": [asked(conv, {"instances": pixels.tolist()}), {"predictions": of_pixels}],
        "image without its channel": [asked(conv, pixels[:1, :, :, 0].tolist()),
                                      [400, "Input input_layer has shape [any, 4, 4, 1], the request [1, 1, 4, 4]."]],
    }  # fmt: skip


def refused(folder):
    model = TensorFlowHandler.load(ModelSource(folder / "saved", "m", {}))
    return {
        "width": asked(model, {"instances": [[1, 2]]}),
        "text": asked(model, {"instances": [["a", 1, 2]]}),
        "too large": asked(model, {"instances": [[1e39, 1, 2]]}),
        "no signature": asked(model, {"signature_name": "nobody's", "instances": [[1, 2, 3]]}),
        "both": asked(model, {"instances": [], "inputs": []}),
        "examples": asked(model, {"examples": [{"x": 1}]}),
        "a number for instances": asked(model, {"instances": 1}),
        "no rows": asked(model, {"instances": []}),
        "nobody's input": asked(model, {"inputs": {"y": [[1, 2, 3]]}}),
        "no rows in the answer": asked(model, {"signature_name": "total", "instances": [[1, 2, 3], [1, 2, 3]]}),
        "number for a text": asked(model, {"signature_name": "texts", "instances": [1]}),
        "no base64": asked(model, {"signature_name": "texts", "instances": [{"b64": "?"}]}),
        "classify": asked(model, [[1, 2, 3]], **{"x-amzn-sagemaker-custom-attributes": "a=1,tfs-method=classify"}),
        "several as CSV": asked(
            model, {"signature_name": "several", "inputs": {"x": [[1, 2, 3]], "n": [1]}}, accept="text/csv"
        ),
        "no JSON": asked(model, b"{"),
        "image": asked(model, b"x", "image/png"),
    }


def not_loaded(folder):
    """What is refused as it is loaded: its words, by name."""
    found = {}
    inputs = keras.Input((3,))
    with_code = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Lambda(lambda x: x * 2)(inputs)))
    for name in ("lambda.keras", "lambda.h5"):
        (folder / "with_code").mkdir(exist_ok=True)
        with_code.save(folder / "with_code" / name)
        found[name] = refusal(folder / "with_code")
        (folder / "with_code" / name).unlink()
    tf.saved_model.save(tf.Module(), str(folder / "empty" / "1"))
    found["no signatures"] = refusal(folder / "empty")
    shutil.copytree(folder / "saved" / "export" / "Servo", folder / "many" / "a")
    shutil.copytree(folder / "saved" / "export" / "Servo" / "1", folder / "many" / "b")
    found["two models"] = refusal(folder / "many")
    chosen = ModelSource(folder / "many", "m", {"SAGEMAKER_TFS_DEFAULT_MODEL_NAME": "b"})
    assert asked(TensorFlowHandler.load(chosen), [[1, 2, 3]])["predictions"]
    return found


def refusal(folder):
    try:
        TensorFlowHandler.load(ModelSource(folder, "m", {}))
    except HandlerError as error:
        return error.message
    return "it was loaded"


def damaged(folder):
    """One process for all: what ends it, ends the test."""
    cases = []
    variables = "exported/1/variables/variables"
    for name in (
        "model_keras/model.keras", "model_h5/model.h5", "exported/1/saved_model.pb", f"{variables}.index",
        f"{variables}.data-00000-of-00001",
    ):  # fmt: skip
        top = name.partition("/")[0]
        whole = (folder / name).read_bytes()
        for step in range(6):
            copy = folder / f"damaged-{len(cases)}"
            shutil.copytree(folder / top, copy)
            place = len(whole) * step // 6
            cut = whole[:place] if step % 2 else whole[:place] + b"\xff" * 24 + whole[place + 24 :]
            (copy / name.partition("/")[2]).write_bytes(cut)
            cases.append(copy)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *cases], capture_output=True, text=True, check=False
    )
    return [done.returncode, done.stdout.splitlines(), done.stderr[-1000:]]


def main(folder):
    keras.utils.set_random_seed(3)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    right = {**of_saved_model(folder), **of_keras(folder)}
    results = {"right": right, "refused": refused(folder), "not loaded": not_loaded(folder), "damaged": damaged(folder)}
    sys.stdout.write("\n" + json.dumps(results))


main(Path(sys.argv[1]))
