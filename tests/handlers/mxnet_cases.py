"""
What tests/handlers/test_mxnet.py asks, answered in MXNet's Python environment: `python mxnet_cases.py FOLDER`.

Prints one JSON object: for each case its answer, or the class and the text of what was raised.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from polyhost_handlers import auto, mxnet_handler  # noqa: E402
from polyhost_handlers.base import ModelSource, Request  # noqa: E402

warnings.simplefilter("error")
SIDE = 4
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CASES: dict[str, Any] = {}


def told(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - it is what the tests are about
        return [type(error).__name__, str(error)]


def checkpoint(
    folder: Path, channels: int = 3, label: bool = False, leave_out: str = "", epochs: tuple[int, ...] = (0,)
) -> Path:
    """The mean of each colour, then a softmax: the answer says which colour the picture has most of."""
    folder.mkdir()
    network = mx.sym.mean(mx.sym.var("data"), axis=(2, 3))
    network = mx.sym.FullyConnected(network, num_hidden=3, name="fc")
    network = mx.sym.SoftmaxOutput(network, name="softmax") if label else mx.sym.softmax(network)
    weight = mx.nd.array(np.eye(3, channels) / 100)
    arguments = {"fc_weight": weight, "fc_bias": mx.nd.zeros(3)}
    arguments.pop(leave_out, None)
    for epoch in epochs:
        mx.model.save_checkpoint(str(folder / "net"), epoch, network, arguments, {}, remove_amp_cast=True)
    (folder / "net-shapes.json").write_text(json.dumps([{"shape": [1, channels, SIDE, SIDE], "name": "data"}]))
    (folder / "synset.txt").write_text("\n".join(COLOURS) + "\n")
    return folder


def load(folder: Path) -> Any:
    return mxnet_handler.MXNetHandler.load(ModelSource(folder, "m", {}))


def ask(model: Any, body: bytes, content_type: str = "application/x-image", accept: str = "") -> Any:
    return json.loads(model.predict(Request(body, content_type, accept)).body)


def picture(mode: str, colour: Any, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (30, 20), colour).save(stream, form)
    return stream.getvalue()


def grey16(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 6), value, np.uint16)).save(stream, "PNG")
    return stream.getvalue()


def png_of(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def published(body: bytes, width: int, height: int) -> np.ndarray:
    """What the handler of AWS's bring-your-own sample makes of a picture."""
    image = mx.img.imdecode(body)
    image = mx.image.imresize(image, width, height)
    return image.transpose((2, 0, 1)).expand_dims(axis=0).asnumpy()


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def photographs() -> dict[str, bytes]:
    """One scene with soft and hard edges and noise, in every form that OpenCV and Pillow both read."""
    y, x = np.mgrid[0:217, 0:333]
    random = np.random.default_rng(0)
    scene = np.stack([127 + 120 * np.sin(x / 17 + y / 29), 255 * ((x // 9 + y // 7) % 2), (x * y / 90) % 256], -1)
    scene = (scene + random.normal(0, 12, scene.shape)).clip(0, 255).astype("u1")
    image = Image.fromarray(scene)
    alpha = Image.fromarray(np.dstack([scene, random.integers(0, 256, scene.shape[:2], dtype="u1")]))
    exif = Image.Exif()
    exif[274] = 6  # on its side
    return {
        "PNG": encoded(image, "PNG"),
        "JPEG": encoded(image, "JPEG"),
        "JPEG 4:4:4": encoded(image, "JPEG", quality=95, subsampling=0),
        "progressive JPEG": encoded(image, "JPEG", quality=40, progressive=True),
        "turned JPEG": encoded(image, "JPEG", exif=exif),
        "grey JPEG": encoded(image.convert("L"), "JPEG"),
        "CMYK JPEG": encoded(image.convert("CMYK"), "JPEG"),
        "alpha": encoded(alpha, "PNG"),
        "grey alpha": encoded(alpha.convert("LA"), "PNG"),
        "palette": encoded(image.convert("P"), "PNG", transparency=3),
        "one bit": encoded(image.convert("1"), "PNG"),
        "grey of 16 bits": encoded(Image.fromarray(random.integers(0, 65536, (50, 60), dtype="u2")), "PNG"),
        "BMP": encoded(image, "BMP"),
    }


def compare_with_published(root: Path) -> None:
    """The largest difference of a pixel, for pictures that shrink, grow and do both."""
    bodies = photographs()
    for name, body in bodies.items():
        for width, height in ((224, 224), (31, 17), (500, 400), (400, 50)):
            ours = mxnet_handler._decode_image(body, (1, 3, height, width))
            CASES[f"{name} {width}x{height}"] = float(np.abs(ours - published(body, width, height)).max())
    folder = checkpoint(root / "photograph")
    model = load(folder)
    for name, body in bodies.items():
        module = model._module
        module.forward(mx.io.DataBatch([mx.nd.array(published(body, SIDE, SIDE))]), is_train=False)
        probabilities = np.squeeze(module.get_outputs()[0].asnumpy())
        order = np.argsort(probabilities)[::-1][:5]
        names = list(COLOURS)
        CASES[f"{name} answer"] = [
            ask(model, body),
            [f"probability={probabilities[each]:f}, class={names[each]}" for each in order],
        ]


def ask_all(root: Path) -> None:
    compare_with_published(root)
    folder = checkpoint(root / "good")
    CASES["auto"] = type(auto.AutoHandler.load(ModelSource(folder, "m", {}))).__name__
    model = load(folder)
    for colour, rgb in COLOURS.items():
        CASES[f"{colour} PNG"] = ask(model, picture("RGB", rgb))
    CASES["red JPEG"] = ask(model, picture("RGB", COLOURS["red"], "JPEG"), "image/jpeg")
    CASES["red RGBA"] = ask(model, picture("RGBA", (255, 0, 0, 10)))
    CASES["red palette"] = ask(model, picture("RGB", COLOURS["red"], "GIF"), "image/gif")
    CASES["red CMYK"] = ask(model, picture("CMYK", (0, 255, 255, 0), "JPEG"))
    CASES["no type"] = ask(model, picture("RGB", COLOURS["red"]), "")
    pixels = np.zeros((1, 3, SIDE, SIDE))
    pixels[:, 2] = 255
    CASES["blue JSON"] = ask(model, json.dumps(pixels.tolist()).encode(), "application/json")
    CASES["blue flat JSON"] = ask(model, json.dumps(pixels.ravel().tolist()).encode(), "application/json")
    CASES["blue npy"] = ask(model, npy(pixels[0].astype("u1")), "application/x-npy")
    CASES["blue CSV"] = ask(model, ",".join(map(str, pixels.ravel())).encode(), "text/csv")

    grey = load(checkpoint(root / "grey", channels=1))
    for name, body in {
        "grey": picture("L", 200),
        "grey16": grey16(200 * 257),
        "grey of RGB": picture("RGB", (200,) * 3),
    }.items():
        decoded = mxnet_handler._decode_image(body, (1, 1, SIDE, SIDE))
        CASES[name] = [list(decoded.shape), float(decoded.min()), float(decoded.max())]
        CASES[f"{name} answer"] = len(ask(grey, body))
    CASES["grey16 as RGB"] = sorted(set(mxnet_handler._decode_image(grey16(200 * 257), (1, 3, 2, 2)).ravel().tolist()))

    bad = {
        "empty": (b"", "image/png"),
        "text": (b"not an image", "image/png"),
        "cut off": (picture("RGB", 0)[:45], "image/png"),
        "bomb": (png_of(9000, 9000), "image/png"),
        "large bomb": (png_of(100_000, 100_000), "image/png"),
        "no pixels": (png_of(0, 5), "image/png"),
        "TIFF": (picture("RGB", 0, "TIFF"), "image/png"),
        "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "application/x-image"),
        "ragged JSON": (b"[[1], [2, 3]]", "application/json"),
        "object JSON": (b'{"a": 1}', "application/json"),
        "huge number": (b"[1" + b"0" * 400 + b"]", "application/json"),
        "small npy": (npy(np.zeros(5)), "application/x-npy"),
        "text npy": (npy(np.array(["a"] * 48)), "application/x-npy"),
        "empty CSV": (b"\xef\xbb\xbf", "text/csv"),
        "libsvm": (b"1 0:1", "text/libsvm"),
    }
    for name, (body, content_type) in bad.items():
        CASES[name] = told(lambda body=body, content_type=content_type: ask(model, body, content_type))
    CASES["accept CSV"] = told(lambda: ask(model, picture("RGB", 0), accept="text/csv"))
    damaged = bytearray(picture("RGB", (1, 2, 3), "JPEG"))
    for position in range(len(damaged)):
        changed = bytes(damaged[:position]) + bytes([damaged[position] ^ 0xFF]) + bytes(damaged[position + 1 :])
        answer = told(lambda changed=changed: ask(model, changed))
        if answer[0] not in ("Unparseable", "BadInput") and not answer[0].startswith("probability"):
            CASES["damaged JPEG"] = answer

    CASES["label"] = ask(load(checkpoint(root / "label", label=True)), picture("RGB", COLOURS["green"]))
    CASES["latest epoch"] = mxnet_handler._checkpoint(checkpoint(root / "epochs", epochs=(0, 12)))[1].name
    (checkpoint(root / "no synset") / "synset.txt").unlink()
    CASES["no synset"] = ask(load(root / "no synset"), picture("RGB", COLOURS["red"]))
    (checkpoint(root / "short synset") / "synset.txt").write_text("red\n")
    CASES["short synset"] = ask(load(root / "short synset"), picture("RGB", COLOURS["red"]))
    vector = load(vector_network(root / "vector"))
    CASES["vector"] = ask(vector, b"[[1, 2]]", "application/json")
    CASES["image for a vector"] = told(lambda: ask(vector, picture("RGB", 0)))
    broken_archives(root)


def vector_network(folder: Path) -> Path:
    folder.mkdir()
    mx.model.save_checkpoint(str(folder / "net"), 0, mx.sym.var("data") * 2, {}, {}, remove_amp_cast=True)
    (folder / "net-shapes.json").write_text('[{"shape": [1, 2], "name": "data"}]')
    return folder


def broken_archives(root: Path) -> None:
    good = root / "good"

    def changed(name: str, change: Callable[[Path], Any]) -> None:
        folder = root / name
        shutil.copytree(good, folder)
        change(folder)
        CASES[name] = told(lambda: type(load(folder)).__name__)

    def write(name: str, content: bytes) -> Callable[[Path], Any]:
        return lambda folder: (folder / name).write_bytes(content)

    params, symbol = (good / "net-0000.params").read_bytes(), (good / "net-symbol.json").read_bytes()
    changed("no shapes", lambda folder: (folder / "net-shapes.json").unlink())
    changed("bad shapes", write("net-shapes.json", b'{"shape": 1}'))
    changed("text shapes", write("net-shapes.json", b"text"))
    changed("other shapes", write("net-shapes.json", b'[{"shape": [1, 3, 4], "name": "data"}]'))
    for name, shape in {"absurd": "1, 3, 40000, 40000", "negative": "1, 3, -4, -4", "zero": "0, 3, 4, 4"}.items():
        changed(f"{name} shapes", write("net-shapes.json", f'[{{"shape": [{shape}], "name": "data"}}]'.encode()))
    changed("no symbol", lambda folder: (folder / "net-symbol.json").unlink())
    changed(
        "two networks",
        lambda folder: [
            shutil.copy(folder / f"net{end}", folder / f"b{end}") for end in ("-symbol.json", "-0000.params")
        ],
    )
    changed("text symbol", write("net-symbol.json", b"text"))
    changed("cut off symbol", write("net-symbol.json", symbol[: len(symbol) // 2]))
    changed("text params", write("net-0000.params", b"text"))
    changed("cut off params", write("net-0000.params", params[: len(params) // 2]))
    changed("empty params", write("net-0000.params", b""))
    CASES["incomplete params"] = told(lambda: load(checkpoint(root / "incomplete", leave_out="fc_weight")))


ask_all(Path(sys.argv[1]))
print(json.dumps(CASES))  # noqa: T201
