"""Asks PyTorch's handler in PyTorch's own environment: `python pytorch_cases.py FOLDER`; the last line is JSON."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from polyhost_handlers.artifacts import recognise
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import HandlerError
from polyhost_handlers.pytorch_handler import PyTorchHandler

ROWS = torch.tensor([[0.1, -2.0, 3.5], [1.0, 0.25, -0.75]])
WORDS = torch.tensor([[1, 4, 2], [0, 3, 3]])
LOAD = """
import sys
from pathlib import Path
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import HandlerError
from polyhost_handlers.pytorch_handler import PyTorchHandler
try:
    PyTorchHandler.load(ModelSource(Path(sys.argv[1]), "m", {})).predict(Request(b"[[1, 2, 3]]"))
except HandlerError as error:
    print(error.message)
"""


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x).softmax(-1)


class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(5, 4)

    def forward(self, tokens):
        return self.table(tokens).mean(1)


class Several(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.plain, self.words = Plain(), Words()

    def forward(self, numbers, tokens, scale: Optional[torch.Tensor] = None):  # noqa: UP045 - TorchScript reads it
        return {"classes": self.plain(numbers), "mean": self.words(tokens)}


class Lists(torch.nn.Module):
    def forward(self, xs: list[torch.Tensor]):
        return xs[0]


class Pair(torch.nn.Module):
    def forward(self, x):
        return x * 2, x.sum()


class Complex(torch.nn.Module):
    def forward(self, x):
        return torch.fft.fft(x)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def saved(folder, save, name="model.pth"):
    folder.mkdir()
    save(str(folder / name))
    assert recognise(folder, {}).name == "pytorch"
    return PyTorchHandler.load(ModelSource(folder, "m", {}))


def asked(model, body, content_type="application/json", accept=""):
    try:
        answer = model.predict(
            Request(body if isinstance(body, bytes) else json.dumps(body).encode(), content_type, accept)
        )
    except HandlerError as error:
        return [error.status, error.message]
    if accept == "application/x-npy":
        return np.load(io.BytesIO(answer.body)).tolist()
    return answer.body.decode() if accept else json.loads(answer.body)


def scripted(folder):
    plain, words, several = Plain().eval(), Words().eval(), Several().eval()
    with torch.no_grad():
        expected = plain(ROWS).tolist()
        row = plain(ROWS[0]).tolist()
        of_words = words(WORDS).tolist()
        both = {name: tensor.tolist() for name, tensor in several(ROWS, WORDS).items()}
    model = saved(folder / "plain", torch.jit.script(plain).save)
    traced = saved(folder / "traced", torch.jit.trace(plain, ROWS).save, "any.bin")
    tokens = saved(folder / "words", torch.jit.script(words).save, "model.pt")
    two = saved(folder / "several", torch.jit.script(several).save)
    pair = saved(folder / "pair", torch.jit.script(Pair()).save)
    rows, lines = ROWS.tolist(), "\n".join(",".join(map(repr, row)) for row in ROWS.tolist())
    of_protocol = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": ROWS.flatten().tolist()}]}
    ints = {"inputs": [{"name": "t", "shape": [2, 3], "datatype": "INT64", "data": WORDS.flatten().tolist()}]}
    return {
        "JSON": [asked(model, rows), expected],
        "JSON of one row": [asked(model, rows[0]), row],
        "instances": [asked(model, {"instances": rows}), expected],
        "inputs by name": [asked(traced, {"inputs": {"x": rows}}), expected],
        "records": [asked(model, [{"x": one} for one in rows]), expected],
        "JSON lines": [asked(model, "\n".join(map(json.dumps, rows)).encode(), "application/jsonlines"), expected],
        "protocol": [asked(model, of_protocol), expected],
        "CSV": [asked(model, lines.encode(), "text/csv"), expected],
        "CSV of one row": [asked(model, lines.split("\n")[0].encode(), "text/csv"), row],
        "npy": [asked(traced, npy(ROWS.numpy()), "application/x-npy"), expected],
        "npz": [asked(model, npz(x=ROWS.numpy()), "application/x-npz"), expected],
        "as CSV": [asked(model, rows, accept="text/csv"), "\n".join(",".join(map(repr, row)) for row in expected)],
        "as npy": [asked(model, rows, accept="application/x-npy"), expected],
        "words by npy": [asked(tokens, npy(WORDS.numpy()), "application/x-npy"), of_words],
        "words by protocol": [asked(tokens, ints), of_words],
        "several": [asked(two, {"numbers": rows, "tokens": []}), [204, "The request has no rows."]],
        "several by npz": [asked(two, npz(numbers=ROWS.numpy(), tokens=WORDS.numpy()), "application/x-npz"), both],
        "pair": [asked(pair, [[1.0, 2.0]]), [[[2.0, 4.0]], 3.0]],
    }


def exported(folder):
    plain, words, several = Plain().eval(), Words().eval(), Several().eval()
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        expected = plain(ROWS).tolist()
        alone = plain(ROWS[:1]).tolist()
        of_words = words(WORDS).tolist()
        both = {name: tensor.tolist() for name, tensor in several(ROWS, WORDS).items()}
    program = torch.export.export(plain, (ROWS,), dynamic_shapes={"x": {0: batch}})
    model = saved(folder / "exported", lambda name: torch.export.save(program, name), "model.pt2")
    fixed = torch.export.export(words, (WORDS,))
    tokens = saved(folder / "tokens", lambda name: torch.export.save(fixed, name), "any")
    by_name = torch.export.export(several, (ROWS,), {"tokens": WORDS})
    two = saved(folder / "two", lambda name: torch.export.save(by_name, name), "model.pt2")
    half = torch.export.export(Pair(), (ROWS.bfloat16(),))
    small = saved(folder / "small", lambda name: torch.export.save(half, name), "model.pt2")
    rows = ROWS.tolist()
    line = ",".join(map(repr, rows[0])).encode()
    twice = (ROWS.bfloat16() * 2).tolist()
    return {
        "exported: JSON": [asked(model, rows), expected],
        "exported: CSV of one row": [asked(model, line, "text/csv"), alone],
        "exported: one row": [asked(model, rows[0]), alone],
        "exported: npy of float64": [asked(model, npy(ROWS.double().numpy()), "application/x-npy"), expected],
        "exported: words": [asked(tokens, WORDS.tolist()), of_words],
        "exported: several": [asked(two, {"inputs": {"numbers": rows, "tokens": WORDS.tolist()}}), both],
        "exported: bfloat16": [asked(small, rows)[0], twice],
    }


def refused(folder):
    model = PyTorchHandler.load(ModelSource(folder / "plain", "m", {}))
    tokens = PyTorchHandler.load(ModelSource(folder / "words", "m", {}))
    several = PyTorchHandler.load(ModelSource(folder / "several", "m", {}))
    program, fixed = (PyTorchHandler.load(ModelSource(folder / name, "m", {})) for name in ("exported", "tokens"))
    numbers = saved(folder / "complex", torch.jit.script(Complex()).save)
    pair = PyTorchHandler.load(ModelSource(folder / "pair", "m", {}))
    return {
        "width": asked(model, [[1, 2]]),
        "float for words": asked(tokens, WORDS.tolist()),
        "text": asked(model, [["a", 1, 2]]),
        "ragged": asked(model, [[1, 2, 3], [1]]),
        "too large": asked(model, [[1e39, 1, 2]]),
        "no JSON": asked(model, b"{"),
        "no row": asked(model, b" "),
        "CSV for several": asked(several, b"1,2", "text/csv"),
        "one is missing": asked(several, {"numbers": [[1, 2, 3]]}),
        "nobody's input": asked(model, {"y": [[1, 2, 3]]}),
        "exported: width": asked(program, [[1, 2]]),
        "exported: rows": asked(fixed, [[1, 2, 3]]),
        "exported: no whole number": asked(fixed, [[1, 2, 3.5], [1, 2, 3]]),
        "image": asked(model, b"x", "image/png"),
        "complex": asked(numbers, [1.0, 2.0]),
        "several as CSV": asked(pair, [[1.0]], accept="text/csv"),
    }


def not_loaded(folder):
    """What is refused as it is loaded, by name, and its words."""
    found = {}
    torch.jit.script(Lists()).save(make(folder / "lists") / "model.pt")
    pickled = make(folder / "pickled")
    with (
        zipfile.ZipFile(folder / "exported" / "model.pt2") as whole,
        zipfile.ZipFile(pickled / "model.pt2", "w") as copy,
    ):
        for info in whole.infolist():
            copy.writestr(info, changed(info.filename, whole.read(info), folder / "touched"))
    shutil.copytree(folder / "exported", folder / "object")
    with zipfile.ZipFile(folder / "object" / "model.pt2", "a") as archive:
        archive.writestr("model/data/constants/opaque_obj_0", pickle.dumps(Evil(folder / "touched")))
    for case in ("lists", "pickled", "object"):
        try:
            PyTorchHandler.load(ModelSource(folder / case, "m", {}))
        except HandlerError as error:
            found[case] = error.message
    found["touched"] = (folder / "touched").exists()
    return found


def make(folder):
    folder.mkdir()
    return folder


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def changed(name, content, path):
    """The weights as pickles, one of which calls a function."""
    if name.endswith("model_weights_config.json"):
        return content.replace(b'"use_pickle": false', b'"use_pickle": true')
    if not name.rpartition("/")[2].startswith("weight_"):
        return content
    stream = io.BytesIO()
    torch.save(Evil(path), stream)
    return stream.getvalue()


def damaged(folder):
    found = {}
    for name in ("plain/model.pth", "exported/model.pt2"):
        whole = (folder / name).read_bytes()
        for step in range(8):
            place = len(whole) * step // 8
            cut = whole[:place] if step % 2 else whole[:place] + b"\xff" * 40 + whole[place + 40 :]
            (folder / "damaged").mkdir(exist_ok=True)
            (folder / "damaged" / "model.pt").write_bytes(cut)
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", LOAD, folder / "damaged"],
                capture_output=True,
                text=True,
                check=False,
            )
            found[f"{name} {step}"] = [done.returncode, done.stdout, done.stderr[-300:]]
    return found


class Where(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return x.is_cuda and self.layer.weight.is_cuda, self.layer(x)


def on_cuda(folder):
    """Whether program and input were there, its numbers, and the CPU's; None without a device."""
    if not torch.cuda.is_available():
        return None
    where = Where().eval()
    model = saved(folder / "where", torch.jit.script(where).save)
    program = torch.export.export(where.layer, (ROWS,))
    second = saved(folder / "where_exported", lambda name: torch.export.save(program, name), "model.pt2")
    is_there, answer = asked(model, ROWS.tolist())
    return [is_there, [answer, asked(second, ROWS.tolist())], where.layer(ROWS).tolist()]


def main(folder):
    torch.set_num_threads(1)
    torch.manual_seed(3)
    right = {**scripted(folder), **exported(folder)}
    sys.stdout.write(json.dumps({
        "right": right, "refused": refused(folder), "not loaded": not_loaded(folder), "damaged": damaged(folder),
        "cuda": on_cuda(folder),
    }))  # fmt: skip


main(Path(sys.argv[1]))
