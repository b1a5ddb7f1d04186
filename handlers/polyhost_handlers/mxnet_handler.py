"""
MXNet Module checkpoints: images in, the five best classes out, as AWS's bring-your-own sample answers.

Pictures become what the sample's handler makes of them with `mx.image.imdecode` and `imresize`, pixel by pixel:
Pillow decodes, because it can be kept to a few formats, and MXNet's OpenCV resizes.

`PREFIX-symbol.json`, `PREFIX-0000.params`, `PREFIX-shapes.json` (`[{"shape": [1, 3, 224, 224], "name": "data"}]`)
and `synset.txt` with a class a line. Without a synset the answer is the network's output as JSON.
Needs mxnet 1.9.1, which needs Python 3.11 at most and numpy 1.23: an environment of its own.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import checkpoints_in, files_of
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.errors import BadInput, LoadFailed, Unparseable, load_errors_named
from polyhost_handlers.media_types import CSV, JSON, NPY, choose_accept, decoder_for

_IMAGE_TYPES = ("application/x-image", "image/jpeg", "image/png", "image/bmp", "image/gif", "image/webp")
_INPUTS = ("application/x-image", *_IMAGE_TYPES[1:], JSON, NPY, CSV)
# Pillow reads many more formats, some of them by starting other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
_TOP = 5
# What a camera makes is below 50 megapixels; a small file that claims more is a bomb.
_MAX_PIXELS = 64_000_000
# MXNet counts with 32 bits, and writes beyond its memory where that is not enough.
_MAX_NUMBERS = 2**31


class MXNetHandler(Handler):
    kind = "mxnet"

    def __init__(self, module: Any, shape: tuple[int, ...], synset: list[str]) -> None:
        self._module = module
        self._shape = shape
        self._synset = synset

    @classmethod
    def load(cls, source: ModelSource) -> MXNetHandler:
        mx = _mxnet()
        symbol_file, params_file = _checkpoint(source.model_dir)
        name, shape = _input_shape(source.model_dir, symbol_file)
        prefix = str(symbol_file).removesuffix("-symbol.json")
        epoch = int(params_file.stem.rpartition("-")[2])
        needed_bytes = params_file.stat().st_size + 4 * math.prod(shape)
        with load_errors_named(symbol_file.name, needed_bytes):
            symbol, arguments, auxiliaries = mx.model.load_checkpoint(prefix, epoch)
            _check_complete(symbol, {name, *arguments, *auxiliaries}, params_file.name)
            module = mx.mod.Module(symbol=symbol, context=mx.cpu(), data_names=[name], label_names=None)
            module.bind(for_training=False, data_shapes=[(name, shape)])
            # What is missing is a label, which only training needs.
            module.set_params(arguments, auxiliaries, allow_missing=True, allow_extra=True)
        return cls(module, shape, _synset(source.model_dir))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        choose_accept(request.accept, (JSON,), JSON)
        output = self._forward(self._decode(request))
        if not self._synset:
            return Response(codecs.encode_json(output.tolist()))
        return Response(codecs.encode_json(self._best(output[0])))

    def _decode(self, request: Request) -> np.ndarray[Any, Any]:
        """The batch of one that the network takes."""
        content_type = decoder_for(request.content_type, _INPUTS, default=_IMAGE_TYPES[0])
        if content_type in _IMAGE_TYPES:
            return _decode_image(request.body, self._shape)
        if content_type == NPY:
            array = codecs.decode_npy(request.body)
        elif content_type == CSV:
            array = codecs.decode_csv(request.body)
        else:
            array = _json_array(request.body)
        if array.size != math.prod(self._shape) or array.dtype.kind not in "biuf":
            shapes = f"{list(self._shape)}, the request has {list(array.shape)}"
            raise BadInput(f"The network takes numbers of shape {shapes}.")
        with np.errstate(over="ignore"):
            return array.reshape(self._shape).astype(np.float32)

    def _forward(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        mx = _mxnet()
        self._module.forward(mx.io.DataBatch([mx.nd.array(batch)]), is_train=False)
        output: np.ndarray[Any, Any] = self._module.get_outputs()[0].asnumpy()
        return output

    def _best(self, scores: np.ndarray[Any, Any]) -> list[str]:
        probabilities = np.ravel(scores)
        order = np.argsort(probabilities)[::-1][:_TOP]
        return [f"probability={probabilities[index]:f}, class={self._class_name(index)}" for index in order]

    def _class_name(self, index: int) -> str:
        return self._synset[index] if index < len(self._synset) else str(index)


def _mxnet() -> Any:
    import warnings

    # mxnet 1.9.1 speaks to numpy 1.23 in words that numpy has since deprecated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import mxnet
        except ImportError as error:
            raise LoadFailed(
                f"Unable to load model: mxnet cannot be imported here ({error}). It needs Python 3.11 at most and "
                "numpy 1.23: make its environment with polyhost env build mxnet-1.9, or use the image with mxnet.",
            ) from error
    return mxnet


def _checkpoint(model_dir: Path) -> tuple[Path, Path]:
    pairs = checkpoints_in(model_dir)
    if len(pairs) != 1:
        names = ", ".join(path.name for path in files_of(model_dir)) or "nothing"
        raise LoadFailed(f"Unable to load model: one *-symbol.json with its *-0000.params belongs here, found {names}.")
    return pairs[0]


def _check_complete(symbol: Any, known: set[str], params_name: str) -> None:
    """MXNet would run a network with whatever lies in memory where its parameters are missing."""
    missing = [name for name in (*symbol.list_arguments(), *symbol.list_auxiliary_states()) if name not in known]
    missing = [name for name in missing if not name.endswith("label")]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise LoadFailed(f"Unable to load model: {params_name} has no {', '.join(missing[:3])}{more}.")


def _input_shape(model_dir: Path, symbol_file: Path) -> tuple[str, tuple[int, ...]]:
    """The network's first input, from `PREFIX-shapes.json`."""
    path = model_dir / symbol_file.name.replace("-symbol.json", "-shapes.json")
    if not path.is_file():
        raise LoadFailed(f"Unable to load model: {path.name} is missing; it names the input and its shape.")
    try:
        first = json.loads(path.read_bytes())[0]
        name, shape = str(first["name"]), tuple(int(size) for size in first["shape"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise LoadFailed(f'Unable to load model: {path.name} is not [{{"shape": […], "name": "data"}}].') from error
    if not 0 < math.prod(shape) < _MAX_NUMBERS or min(shape, default=1) < 1:
        raise LoadFailed(f"Unable to load model: {path.name} has the shape {list(shape)}, which no network takes.")
    return name, shape


def _synset(model_dir: Path) -> list[str]:
    path = model_dir / "synset.txt"
    return (
        [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        if path.is_file()
        else []
    )


def _decode_image(body: bytes, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An image file as RGB of the declared height and width, shape (1, 3, height, width)."""
    from PIL import Image

    if len(shape) != 4 or shape[1] not in (1, 3):
        raise BadInput(f"The network takes {list(shape)}, which is not an image: send application/json.")
    try:
        image = Image.open(io.BytesIO(body), formats=_FORMATS)
        if image.width * image.height > _MAX_PIXELS:
            raise BadInput(f"The image has {image.width} by {image.height} pixels: send fewer than {_MAX_PIXELS}.")
        pixels = np.asarray(_eight_bits(image).convert("RGB" if shape[1] == 3 else "L"))
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # a broken image raises anything, from SyntaxError to struct.error
        raise Unparseable("The body is not a readable image: send JPEG or PNG.") from error
    resized = _resized(pixels.reshape(image.height, image.width, shape[1]), width=shape[3], height=shape[2])
    return np.transpose(resized, (2, 0, 1))[np.newaxis, ...].astype(np.float32)


def _resized(pixels: np.ndarray[Any, Any], width: int, height: int) -> np.ndarray[Any, Any]:
    """
    By OpenCV's bilinear rule, which looks at four pixels even where it shrinks a picture to a tenth.

    Pillow's looks at all of them, which is better to look at and not what networks of MXNet have been given.
    """
    mx = _mxnet()
    resized: np.ndarray[Any, Any] = mx.image.imresize(mx.nd.array(pixels, dtype=np.uint8), width, height).asnumpy()
    return resized


def _eight_bits(image: Any) -> Any:
    """What Pillow would convert in another way than OpenCV: grey of 16 bits, and CMYK."""
    if image.mode.startswith("I"):
        return _image((np.asarray(image) >> 8).clip(0, 255))
    if image.mode != "CMYK":
        return image
    *colours, black = (255 - np.asarray(image).astype(np.int32)).transpose(2, 0, 1)
    return _image(np.stack([black - ((255 - colour) * black >> 8) for colour in colours], axis=-1))


def _image(pixels: np.ndarray[Any, Any]) -> Any:
    from PIL import Image

    return Image.fromarray(pixels.astype(np.uint8))


def _json_array(body: bytes) -> np.ndarray[Any, Any]:
    try:
        return np.array(codecs.parse_json(body), dtype=float)
    except (ValueError, TypeError, OverflowError) as error:
        raise Unparseable(f"The body is not lists of numbers, of equal length: {error}.") from error


HANDLER = MXNetHandler
handle = entry_point(MXNetHandler)
