"""Customers' scripts, called as the inference toolkit calls them; a sentence for each way to fail."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.script_trial import Blame, fault_of

from handlers.calling import Answer, Model, npy, npy_header

pytestmark = pytest.mark.usefixtures("restored_process")

MODEL_FN = "def model_fn(model_dir):\n    return len\n"
# Says what reached each function, as JSON.
TELLER = """
import json

def model_fn(model_dir):
    return "model"

def input_fn(body, content_type):
    return {"body": repr(body), "content_type": content_type}

def predict_fn(data, model):
    return {**data, "model": model}

def output_fn(prediction, accept):
    return json.dumps({**prediction, "accept": accept})
"""


@pytest.fixture
def serve(tmp_path: Path, load: Callable[..., Model]) -> Callable[..., Model]:
    def served(script: str, files: dict[str, str] | None = None, **environ: str) -> Model:
        for name, content in {"code/inference.py": script, **(files or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return load("script_handler", tmp_path, **environ)

    return served


def test_the_four_functions(serve: Callable[..., Model]) -> None:
    """Body and Content-Type in, the prediction and Accept out; the answer has the type that was asked for."""
    answer = serve(TELLER).ask(b'{"a": 1}', "application/json", "text/html; q=1")

    assert answer.json() == {
        "body": repr('{"a": 1}'),
        "content_type": "application/json",
        "model": "model",
        "accept": "text/html; q=1",
    }
    assert (answer.status, answer.content_type) == (200, "text/html; q=1")


@pytest.mark.parametrize(
    ("content_type", "body", "seen"),
    [
        ("application/json", b"1", "'1'"),
        ("text/csv", "é".encode(), "'é'"),
        ("", b"1", "'1'"),
        ("application/json; charset=utf-8", b"1", "b'1'"),
        ("application/csv", b"1", "b'1'"),
        ("image/png", b"\xff", r"b'\xff'"),
        ("application/x-npy", b"", "b''"),
    ],
)
def test_which_bodies_are_text(content_type: str, body: bytes, seen: str, serve: Callable[..., Model]) -> None:
    """Exactly those that the toolkit decodes, or a script that decodes by itself would break."""
    told = serve(TELLER).ask(body, content_type).json()

    assert told["body"] == seen
    assert told["content_type"] == (content_type or "application/json")


def test_a_text_that_is_none(serve: Callable[..., Model]) -> None:
    """The script is not asked."""
    answer = serve(TELLER).ask(b"\xff", "text/csv")

    assert (answer.status, answer.message) == (400, "The body is not UTF-8 text: invalid start byte at byte 0.")


@pytest.mark.parametrize("accept", ["", "*/*"])
def test_accept_is_the_containers_where_the_client_takes_anything(accept: str, serve: Callable[..., Model]) -> None:
    """application/json without that."""
    assert serve(TELLER).ask(b"1", accept=accept).json()["accept"] == "application/json"
    model = serve(TELLER, SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="text/csv")
    assert model.ask(b"1", accept=accept).content_type == "text/csv"


def test_transform_fn_takes_the_place_of_three(serve: Callable[..., Model]) -> None:
    """Model, body, Content-Type, Accept."""
    model = serve(MODEL_FN + "def transform_fn(model, *rest):\n    return repr((model('abc'), *rest)), 'text/plain'\n")
    answer = model.ask(b"1,2", "text/csv", "application/json")

    assert (answer.body, answer.content_type) == (b"(3, '1,2', 'text/csv', 'application/json')", "text/plain")


CONTEXTS = """
import json

LOG = []

def pre_model_fn(model_dir, context):
    LOG.append(["pre", model_dir, context.model_name])

def model_fn(model_dir, context):
    LOG.append(["model", context.system_properties["model_dir"]])
    return "model"

def model_warmup_fn(model_dir, model, context):
    LOG.append(["warmup", model, context.model_name])

def input_fn(body, content_type, context):
    return context.get_request_header(0, "X-Thing")

def predict_fn(data, model, context):
    context.set_response_header(0, "X-Answer", "42")
    return data

def output_fn(prediction, accept, context):
    context.set_response_status(418, "teapot", 0)
    return json.dumps([prediction, LOG])
"""


def test_each_function_may_take_a_context(serve: Callable[..., Model], tmp_path: Path) -> None:
    """MMS's own; around the load too, in that order; a status and a header set on it are answered."""
    answer = serve(CONTEXTS).ask(b"1", **{"X-Thing": "yes"})

    assert answer.status == 418
    assert answer.headers["X-Answer"] == "42"
    folder = str(tmp_path)
    assert answer.json() == ["yes", [["pre", folder, "model"], ["model", folder], ["warmup", "model", "model"]]]


def test_functions_with_options_and_without_names(serve: Callable[..., Model]) -> None:
    """Only places are counted: `**options` is none, and `*arguments` takes what is due."""
    script = (
        "import functools\n"
        "def model_fn(*arguments):\n    return arguments\n"
        "def input_fn(body, content_type, **options):\n    return [body, options]\n"
        "class Predict:\n    def __call__(self, data, model):\n        return [data, len(model)]\n"
        "predict_fn = Predict()\n"
        "output_fn = functools.partial(lambda prediction, accept, extra: [prediction, extra], extra=5)\n"
    )
    assert serve(script).ask(b"1").json() == [[["1", {}], 1], 5]


@pytest.mark.parametrize(
    ("script", "asked", "body", "content_type"),
    [
        ("return b'\\xff\\x00'", "", b"\xff\x00", "application/json"),
        ("return bytearray(b'ab')", "", b"ab", "application/json"),
        ("return 'é'", "", "é".encode(), "application/json"),
        ("return '1', 'text/csv'", "application/json", b"1", "text/csv"),
        ("return {'a': [1]}", "", b'{\n  "a": [\n    1\n  ]\n}', "application/json"),
        ("return np.array([1, 2])", "", b"[\n  1,\n  2\n]", "application/json"),
        (
            "return {'a': np.float32(0.5), 'b': np.arange(1)}",
            "",
            b'{\n  "a": 0.5,\n  "b": [\n    0\n  ]\n}',
            "application/json",
        ),
        ("return None", "", b"null", "application/json"),
        ("return 5, 'text/plain'", "", b"5", "text/plain"),
    ],
)
def test_what_a_script_may_answer(
    script: str, asked: str, body: bytes, content_type: str, serve: Callable[..., Model]
) -> None:
    """Bytes and text as they are, all else as the JSON that MMS makes of it; numpy's values too."""
    model = serve(f"import numpy as np\n{MODEL_FN}def transform_fn(model, body, content_type, accept):\n    {script}\n")
    answer = model.ask(b"1", accept=asked)

    assert (answer.status, answer.body, answer.content_type) == (200, body, content_type)


def test_an_answer_that_cannot_be_sent_spoils_no_other(serve: Callable[..., Model]) -> None:
    """MMS alone would answer the whole batch with 503."""
    script = (
        MODEL_FN
        + "def transform_fn(model, body, content_type, accept):\n    return object() if body == 'x' else body\n"
    )
    bad, good = serve(script).ask_batch([b"x", b"y"], "text/csv")

    assert (bad.status, bad.message) == (500, "The script answered what cannot be sent: object does not go into JSON.")
    assert (good.status, good.body) == (200, b"y")


ADDER = "import numpy as np\ndef model_fn(model_dir):\n    return lambda data: np.asarray(data) + 1\n"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"[[1, 2]]", "application/json"), (b"1,2", "text/csv"), (npy([[1, 2]]), "application/x-npy"), (b"[[1, 2]]", "")],
)
def test_defaults_where_a_script_has_only_model_fn(body: bytes, content_type: str, serve: Callable[..., Model]) -> None:
    """The toolkit's formats in and out; what is callable, or has `predict`, predicts."""
    model = serve(ADDER)

    row_or_rows = [2, 3] if content_type == "text/csv" else [[2, 3]]
    assert model.ask(body, content_type).json() == row_or_rows
    assert model.ask(body, content_type, "text/csv").body == (b"2\n3\n" if content_type == "text/csv" else b"2,3\n")
    assert np.load(io.BytesIO(model.ask(body, content_type, "application/x-npy").body)).tolist() == row_or_rows


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "sentence"),
    [
        (b"", "application/json", "", 204, ""),
        (b"{", "application/json", "", 400, "The body is not JSON"),
        (b"[[1], [2, 3]]", "application/json", "", 400, "The rows differ in length"),
        (b"1,2\n3", "text/csv", "", 400, "The body is not CSV: Line #2 (got 1 columns instead of 2)."),
        (npy_header("-" * 9000 + "1"), "application/x-npy", "", 400, "its header cannot be read"),
        (
            npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
            "application/x-npy",
            "",
            400,
            "send numbers",
        ),
        (b"x", "image/png", "", 415, "Content-Type image/png is not supported here"),
        (b"[1]", "application/json", "image/png", 415, "Accept image/png is not supported here"),
    ],
)
def test_codes_of_the_defaults(
    body: bytes, content_type: str, accept: str, status: int, sentence: str, serve: Callable[..., Model]
) -> None:
    """No pickle from a request, ever: here the toolkit would run one."""
    answer = serve(ADDER).ask(body, content_type, accept)

    assert answer.status == status
    assert status == 204 or sentence in answer.message


def test_an_object_with_predict(serve: Callable[..., Model]) -> None:
    """And one number as CSV."""
    script = (
        "class M:\n    def predict(self, data):\n        return float(data.sum())\n"
        "def model_fn(model_dir):\n    return M()\n"
    )

    assert serve(script).ask(b"1,2", "text/csv", "text/csv").body == b"3.0\n"


def test_functions_that_are_none_are_the_defaults(serve: Callable[..., Model]) -> None:
    """As in the toolkit."""
    script = ADDER + "input_fn = predict_fn = output_fn = transform_fn = pre_model_fn = model_warmup_fn = None\n"
    assert serve(script).ask(b"[1]").json() == [2]


def test_what_cannot_predict(serve: Callable[..., Model]) -> None:
    """A model that is neither callable nor has `predict` needs predict_fn."""
    answer = serve("def model_fn(model_dir):\n    return {}\n").ask(b"[1]")

    assert (answer.status, answer.message) == (500, "The script has no predict_fn, and its dict cannot predict.")


def test_the_working_directory_and_the_modules_beside_the_script(serve: Callable[..., Model], tmp_path: Path) -> None:
    """Files of the archive by bare names, at load and later; a module beside it, also while predicting; a package."""
    script = (
        "from pathlib import Path\n"
        "from words import LOUD\n"
        "from package.inner import AGAIN\n"
        "def model_fn(model_dir):\n    return Path('weights.txt').read_text()\n"
        "def transform_fn(model, body, content_type, accept):\n"
        "    import late\n"
        "    return LOUD + AGAIN + model + late.WORD + Path('more.txt').read_text()\n"
    )
    files = {
        "code/words.py": "LOUD = 'a'\n",
        "code/package/inner.py": "AGAIN = 'b'\n",
        "code/late.py": "WORD = 'd'\n",
        "weights.txt": "c",
        "more.txt": "e",
    }

    assert serve(script, files).ask(b"x", "text/csv").body == b"abcde"
    assert Path.cwd() == tmp_path
    assert sys.path[0] == str(tmp_path / "code")


def test_what_a_script_sees_of_itself(serve: Callable[..., Model], tmp_path: Path) -> None:
    """Its name, its file, its classes by pickle."""
    script = (
        "import pickle, sys\n"
        "class Model:\n    pass\n"
        "def model_fn(model_dir):\n    return pickle.loads(pickle.dumps(Model()))\n"
        "def transform_fn(model, body, content_type, accept):\n"
        "    return [__name__, __file__, type(model) is Model, sys.modules[__name__].__file__]\n"
    )
    path = str(tmp_path / "code" / "inference.py")

    assert serve(script).ask(b"1").json() == ["inference", path, True, path]


@pytest.mark.parametrize("program", ["serve.py", "serve"])
def test_sagemaker_program(program: str, serve: Callable[..., Model]) -> None:
    """Another name for the script, with or without its ending."""
    script = MODEL_FN + "def transform_fn(model, body, content_type, accept):\n    return 'serve'\n"

    assert serve(MODEL_FN, {"code/serve.py": script}, SAGEMAKER_PROGRAM=program).ask(b"1").body == b"serve"


def test_the_containers_script(load: Callable[..., Model], tmp_path: Path) -> None:
    """SAGEMAKER_SUBMIT_DIRECTORY: one script for every model, with the modules beside it and the model's own files."""
    code, archive = tmp_path / "submitted", tmp_path / "archive"
    code.mkdir()
    archive.mkdir()
    (archive / "weights.txt").write_text("own")
    (code / "shared.py").write_text("from pathlib import Path\ndef words(name):\n    return Path(name).read_text()\n")
    (code / "inference.py").write_text(
        "import shared\ndef model_fn(model_dir):\n    return shared.words('weights.txt')\n"
        "def transform_fn(model, body, content_type, accept):\n    return model\n",
    )
    model = load("auto", archive, SAGEMAKER_SUBMIT_DIRECTORY=str(code))

    assert model.ask(b"1").body == b"own"


def test_the_sample(load: Callable[..., Model], tmp_path: Path) -> None:
    """The one that the README serves."""
    (tmp_path / "code").symlink_to(ROOT / "container" / "polyhost" / "demo" / "listing_tone" / "code")
    (tmp_path / "weights.json").write_text('{"bright": 1}')
    answer = load("auto", tmp_path).ask(b'{"text": "A bright kitchen"}', "application/json")

    assert answer.json() == {"tone": "warm", "score": 1}


FAILURES = {
    "import": (
        "import nothing_like_this",
        "inference.py cannot be imported: ModuleNotFoundError: No module named 'nothing_like_this'",
    ),
    "syntax": ("def model_fn(:", "inference.py cannot be imported: SyntaxError: invalid syntax"),
    "exit": ("import sys\nsys.exit('no GPU')", "inference.py cannot be imported: SystemExit: no GPU"),
    "model_fn": (
        "def model_fn(model_dir):\n    raise KeyError('weights')",
        "model_fn of inference.py failed: KeyError: 'weights'",
    ),
    "pre_model_fn": (
        MODEL_FN + "def pre_model_fn(model_dir):\n    1 / 0",
        "pre_model_fn of inference.py failed: ZeroDivisionError: division by zero",
    ),
    "model_warmup_fn": (
        MODEL_FN + "def model_warmup_fn(model_dir, model):\n    raise ValueError('two\\nlines')",
        "model_warmup_fn of inference.py failed: ValueError: two",
    ),
    "arguments": (
        "def model_fn():\n    pass",
        "model_fn of inference.py failed: HandlerError: model_fn takes 0 arguments, 1 (or one more, context) are due.",
    ),
    "no model_fn": ("", "inference.py has no model_fn(model_dir)."),
    "two ways": (
        MODEL_FN + "def transform_fn(m, b, c, a): ...\ndef input_fn(b, c): ...\ndef output_fn(p, a): ...",
        "inference.py has transform_fn and input_fn, output_fn: keep one way.",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_script_that_fails_to_load(failure: str, serve: Callable[..., Model]) -> None:
    """Which function, what it raised, in one sentence."""
    script, sentence = FAILURES[failure]
    with pytest.raises(LoadFailed) as raised:
        serve(script)

    assert raised.value.message.startswith(f"Unable to load model: {sentence}")
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("where", ["import", "model_fn", "pre_model_fn", "model_warmup_fn"])
@pytest.mark.parametrize(
    "error", ["MemoryError('no room')", "RuntimeError('std::bad_alloc')", "OSError(12, 'no memory')"]
)
def test_memory_stays_what_it_is_while_loading(where: str, error: str, serve: Callable[..., Model]) -> None:
    """Not a failed load: the same model fits once there is room."""
    if where == "import":
        script = f"raise {error}\n"
    else:
        script = (MODEL_FN if where != "model_fn" else "") + f"def {where}(*_):\n    raise {error}\n"
    with pytest.raises(MemoryError):
        serve(script)


@pytest.mark.parametrize("function", ["input_fn", "predict_fn", "output_fn", "transform_fn"])
@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        ("ValueError('send\\nmore')", 500, "Prediction failed: ValueError: send"),
        ("SystemExit(1)", 500, "Prediction failed: the script exited: 1"),
        ("PredictionException('not today', 503)", 503, "not today"),
        ("BaseInferenceToolkitError(415, 'send CSV', 'Unsupported')", 415, "send CSV"),
        ("GenericInferenceToolkitError(400, 'bad row')", 400, "bad row"),
        ("BadInput('own kind')", 400, "own kind"),
        ("MemoryError()", 507, ""),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: you tried to allocate 4 bytes.')", 507, ""),
    ],
)
def test_a_script_that_fails_to_answer(
    error: str, status: int, sentence: str, function: str, serve: Callable[..., Model]
) -> None:
    """MMS's and the toolkit's exceptions choose a status; all others are a 500 in one sentence."""
    script = (
        "from mms.service import PredictionException\n"
        "from sagemaker_inference.errors import BaseInferenceToolkitError, GenericInferenceToolkitError\n"
        "from polyhost_handlers.errors import BadInput\n"
        f"{MODEL_FN}def {function}(*_):\n    raise {error}\n"
    )
    answer: Answer = serve(script).ask(b"[1]", "application/json")

    assert answer.status == status
    if status != 507:
        assert answer.message == sentence
        assert b"Traceback" not in answer.body


def test_requirements_are_checked_before_the_script_is_imported(serve: Callable[..., Model]) -> None:
    """And only where the archive's script lies."""
    with pytest.raises(LoadFailed, match="asks for nothing-like-this, which this server does not have"):
        serve("raise AssertionError('imported')\n", {"code/requirements.txt": "numpy\nnothing-like-this\n"})
    files = {
        "code/requirements.txt": "numpy\n-r ../more.txt\n",
        "more.txt": "scipy\n",
        "requirements.txt": "nor-this\n",
    }
    assert serve(ADDER, files).ask(b"[1]").json() == [2]


def test_an_archive_without_a_script(load: Callable[..., Model], tmp_path: Path) -> None:
    """The name that was looked for."""
    with pytest.raises(LoadFailed, match=r"the archive has no code/serve.py"):
        load("script_handler", tmp_path, SAGEMAKER_PROGRAM="serve.py")


def test_a_batch_is_answered_one_by_one(serve: Callable[..., Model]) -> None:
    """The toolkit itself knows only batches of one."""
    answers = serve(TELLER).ask_batch([b"1", b"\xff", b"3"], "text/csv")

    assert [answer.status for answer in answers] == [200, 400, 200]
    assert [json.loads(answers[index].body)["body"] for index in (0, 2)] == ["'1'", "'3'"]


def test_the_same_answers_as_the_toolkit(
    load: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own Transformer, given the same script and the same requests, says the same."""
    from sagemaker_inference.transformer import Transformer

    (tmp_path / "code").mkdir()
    # Where MMS gives a script a bytearray, ours gives bytes.
    (tmp_path / "code" / "inference.py").write_text(
        TELLER.replace("repr(body)", "body if body == str(body) else list(body)")
    )
    ours = load("script_handler", tmp_path, SAGEMAKER_PROGRAM="inference.py")
    theirs = Transformer()  # which finds the module that ours has put in its place
    for body, content_type, accept in (
        (b"[1]", "application/json", ""),
        (b"1,2", "text/csv", "text/csv"),
        (b"\xff\x00", "image/png", "*/*"),
        (b"1", "text/plain", "text/html"),
        (b"1", "application/json; charset=utf-8", "application/json"),
    ):
        own = ours.ask(body, content_type, accept)
        ours.context.request_processor[0].get_response_headers().clear()
        assert theirs.transform([{"body": bytearray(body)}], ours.context) == [own.body.decode()]
        assert ours.context.get_response_content_type(0) == own.content_type


@pytest.mark.parametrize(
    ("script", "blame"),
    [
        ("def model_fn(model_dir:\n", Blame.SCRIPT),
        ("x = 1\n", Blame.SCRIPT),
        ("def model_fn(d): ...\ndef transform_fn(*_): ...\ndef input_fn(*_): ...\n", Blame.SCRIPT),
        ("import no_such_module\n", Blame.EITHER),
        ("1 / 0\n", Blame.EITHER),
        ("raise SystemExit\n", Blame.EITHER),
        ("open('weights.txt')\n", Blame.MODEL),
        ("import os\nos.listdir('weights')\n", Blame.MODEL),
        (MODEL_FN, None),
    ],
)
def test_what_a_containers_script_lacks(
    tmp_path: Path, restored_process: None, script: str, blame: Blame | None
) -> None:
    """And whether a model may bring it."""
    code, model_dir = tmp_path / "code", tmp_path / "model"
    code.mkdir()
    model_dir.mkdir()
    (code / "inference.py").write_text(script)
    fault = fault_of(model_dir, {"SAGEMAKER_SUBMIT_DIRECTORY": str(code)})

    assert (fault and fault.blame) == blame
    assert fault is None or not fault.message.startswith("Unable")
