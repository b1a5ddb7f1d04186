"""
Bad input over HTTP: the right status, one sentence that says what to change, and a server that goes on.

The answers are the same on every engine: before the real MMS stands our front, which mends what MMS says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import MODELS, SAMPLES, Servers
from support.server import Answer, Server

HOUSE = "1998,2150,3,2.5,0.4,2"


@pytest.fixture
def samples(samples_folder: Path, engine: str, servers: Servers) -> Iterator[Server]:
    """A server with one sample model of each kind; it must still serve after each test."""
    server = servers.get(
        engine,
        environ={"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "120"},
    )
    for name in ("houston", "house_preprocessor", "house_linear_learner", "house_network", "listing_tone"):
        if name not in server.names():
            assert server.load(name, samples_folder / name).status == 200, server.process.log
    yield server
    assert server.request("GET", "/ping").json() == {"status": "Healthy"}
    assert server.invoke("houston", HOUSE).status == 200


# What our handlers answer


@pytest.mark.parametrize(
    ("model", "body", "content_type", "status", "words"),
    [
        ("houston", "not,a,number,x,y,z", "text/csv", 415, "Line 1, field 1: 'not' is not a number"),
        ("houston", f"{HOUSE}\n1,2,3", "text/csv", 415, "Line 2 has 3 fields, line 1 has 6"),
        ("houston", "1,2,3", "text/csv", 400, "Each row has 3 features, the model was trained on 6."),
        ("houston", "{not json", "application/json", 415, "The body is not JSON"),
        ("houston", HOUSE, "application/xml", 415, "Content-Type application/xml is not supported here"),
        ("houston", b"\xff\xfe\x00", "text/csv", 415, "The body is not UTF-8 text"),
        (
            "houston",
            "1 7:1",
            "text/libsvm",
            415,
            "Line 1 begins '1 7:1': index 7 is none of the model's",
        ),
        ("houston", b"\x0a\x23\xd7\xce\xff\xff\xff\x7f", "application/x-recordio-protobuf", 415, "is cut off"),
        ("house_preprocessor", "1,2,3", "text/csv", 400, "Each row has 3 features, the model was trained on 8."),
        ("house_preprocessor", f"{HOUSE},perhaps,n", "text/csv", 400, "The model cannot take these rows"),
        ("house_linear_learner", "1,2,3,4,5,6,7,", "text/csv", 400, "cannot take missing"),
        (
            "house_linear_learner",
            '{"rows": 1}',
            "application/json",
            400,
            "Each row has 1 features, the model was trained",
        ),
        ("house_network", "[[1, 2], [3]]", "application/json", 400, "differ in length"),
        ("house_network", "[[1, 2]]", "application/json", 400, "Input house has shape [any, 6], the request [1, 2]."),
        ("house_network", "\x93NUMPY", "application/x-npy", 400, "The body is not a .npy file"),
        ("listing_tone", "{}", "application/json", 500, "KeyError: 'text'"),
    ],
)
def test_a_bad_body_is_answered_in_words(
    samples: Server, model: str, body: bytes | str, content_type: str, status: int, words: str,
) -> None:  # fmt: skip
    """
    The handler's status and sentence reach the client as JSON; no traceback does.
    """
    answer = samples.invoke(model, body, content_type)

    assert answer.status == status, answer.text
    assert words in answer.message
    assert "\n" not in answer.message


def test_an_unknown_accept(samples: Server) -> None:
    """
    What cannot be answered is 415, as AWS's containers say it.
    """
    answer = samples.invoke("houston", HOUSE, Accept="image/png")

    assert answer.status == 415
    assert answer.message == (
        "Accept image/png is not supported here: ask for application/json, text/csv, application/jsonlines or "
        "application/x-recordio-protobuf."
    )


def test_an_empty_body_has_no_answer(samples: Server) -> None:
    """
    204, as AWS's XGBoost answers.
    """
    answer = samples.invoke("houston", "")

    assert (answer.status, answer.body) == (204, b"")


def test_missing_values_are_values_to_xgboost(samples: Server) -> None:
    """
    An empty field and NaN mean the same.
    """
    empty, nan = samples.invoke("houston", "1998,,3,2.5,0.4,2"), samples.invoke("houston", "1998,NaN,3,2.5,0.4,2")

    assert empty.status == 200
    assert empty.body == nan.body != samples.invoke("houston", HOUSE).body


def test_a_body_that_is_too_large(samples: Server) -> None:
    """
    413 with a sentence, where MMS's has none, before a handler sees the body.
    """
    answer = samples.invoke("houston", bytes(20_000_000))

    assert answer.status == 413
    assert answer.message.startswith("The body of a request may have 6553500 bytes: send less")


# What cannot be loaded


def corrupt(folder: Path) -> None:
    path = folder / "xgboost-model"
    path.write_bytes(path.read_bytes()[:1000])


def other_kind(folder: Path) -> None:
    (folder / "xgboost-model").write_text("city,price\nhouston,1\n")


def nothing_known(folder: Path) -> None:
    (folder / "xgboost-model").rename(folder / "weights.bin")
    (folder / "weights.bin").write_bytes(bytes(100))


def emptied(folder: Path) -> None:
    (folder / "xgboost-model").unlink()


def packed_with_its_folder(folder: Path) -> None:
    (folder / "houston").mkdir()
    (folder / "xgboost-model").rename(folder / "houston" / "xgboost-model")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (corrupt, "Unable to load model: xgboost-model is not a readable XGBoost model"),
        (other_kind, "Unable to load model: xgboost-model is not a readable XGBoost model"),
        (nothing_known, "Looked for: code/inference.py.* .script.; .*Found: weights.bin"),
        (emptied, "Found: nothing, the archive is empty"),
        (packed_with_its_folder, "Found: only the folder houston/ .pack the files themselves"),
    ],
)
def test_an_artifact_that_cannot_be_loaded(
    samples: Server, samples_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str,
) -> None:  # fmt: skip
    """
    The handler's own sentence is the answer, and nothing stays registered.
    """
    folder = tmp_path / "spoiled"
    shutil.copytree(samples_folder / "houston", folder)
    spoil(folder)
    name = f"spoiled-{spoil.__name__}"
    answer = samples.load(name, folder)

    assert answer.status == 500
    assert re.search(words, answer.message), answer.message
    samples.process.wait_for_line(f"model {name}: .*{words}")
    assert samples.unload(name).status == 404


def test_a_tar_is_an_archive(samples: Server, samples_folder: Path) -> None:
    """
    What the platform packs may be named as it is: the server unpacks it, and throws that away at the unload.
    """
    with samples.loaded("tar", samples_folder / "houston.tar.gz") as invoke:
        assert invoke(HOUSE).body == samples.invoke("houston", HOUSE).body
        described = samples.request("GET", "/models/tar").json()
        assert described["modelUrl"] == str(samples_folder / "houston.tar.gz")


@pytest.mark.parametrize("body", ["{not json", "[1]", '"text"', '{"url": {"a": 1}}'])
def test_a_load_that_is_not_json(samples: Server, body: str) -> None:
    """
    400 in words.
    """
    answer = samples.request("POST", "/models", body, Content_Type="application/json")

    assert answer.status == 400
    assert answer.json()["type"] == "BadRequestException"


@pytest.mark.parametrize("batch_size", ["many", -1])
def test_a_parameter_that_is_not_a_number(samples: Server, batch_size: object) -> None:
    """
    batch_size must be a number of at least 1.
    """
    answer = samples.load("odd", MODELS / "noop-v1.0", batch_size=batch_size)

    assert answer.status == 400
    assert "batch_size" in answer.message


def test_a_handler_that_does_not_exist(samples: Server) -> None:
    """
    The answer names the module.
    """
    answer = samples.load("odd", MODELS / "noop-v1.0", handler="no_such_module:handle")

    assert answer.status == 500
    assert answer.message == "Unable to load model: ModuleNotFoundError: No module named 'no_such_module'"


# Handlers that misbehave


def test_a_handler_that_raises(samples: Server) -> None:
    """
    An exception is 503 `Prediction failed`; what it says stays in the log.
    """
    with samples.loaded("raises", MODELS / "raises") as invoke:
        answer = invoke()

        assert (answer.status, answer.message) == (503, "Prediction failed")
        samples.process.wait_for_line("something private")


def test_a_handler_that_answers_too_much(samples: Server) -> None:
    """
    A batch of one has one answer.
    """
    with samples.loaded("long", MODELS / "wrong-length") as invoke:
        answer = invoke()

        assert (answer.status, answer.message) == (503, "number of batch response mismatched")


def test_a_handler_that_exits(samples: Server) -> None:
    """
    The caller gets a 500, later ones an answer: a new worker is started.
    """
    with samples.loaded("exits", MODELS / "exits") as invoke:
        answer = invoke("now")

        assert answer.status == 500
        assert answer.message.startswith("The worker of model exits ended while it answered this request")
        assert invoke("stay").text == "stayed"


def test_a_handler_that_exits_while_loading(samples: Server) -> None:
    """
    500, and nothing stays registered.
    """
    answer = samples.load("dead", MODELS / "exits-in-load")

    assert answer.status == 500
    assert answer.message.startswith("The worker of model dead ended while it loaded the model")
    assert samples.unload("dead").status == 404


def test_a_handler_that_fails_in_initialize(samples: Server) -> None:
    """
    In a class too, where MMS alone swallows it and says `Workers scaled` for a model that did not load.
    """
    answer = samples.load("swallowed", MODELS / "init-error-in-class")

    assert answer.status == 500
    assert answer.message == "Unable to load model: ValueError: the weights do not fit the network"
    assert samples.unload("swallowed").status == 404


def test_a_handler_that_takes_too_long(samples: Server) -> None:
    """
    response_timeout is in seconds in JSON. Its own caller is told, the next one answered.

    It is also the time of a load: a worker of MMS may need some seconds on a machine that others use.
    """
    with samples.loaded("sleeps", MODELS / "sleeps", response_timeout=10) as invoke:
        answer = invoke("600")

        assert answer.status == 500
        assert answer.message == "Model sleeps did not answer within 10 s: its worker was ended."
        assert invoke("0").text == "awake"


def test_models_that_nobody_knows(samples: Server) -> None:
    """
    Every route says which model is not there.
    """
    answers: list[Answer] = [
        samples.invoke("nobody", "x"),
        samples.request("GET", "/models/nobody"),
        samples.request("DELETE", "/models/nobody"),
        samples.request("PUT", "/models/nobody?min_worker=1"),
    ]

    assert {(answer.status, answer.message) for answer in answers} == {(404, "Model not found: nobody")}


# Hostile archives


def test_a_script_that_leads_out_of_its_archive(samples: Server, tmp_path: Path) -> None:
    """
    A `code/inference.py` that is a link to elsewhere is not that archive's script.
    """
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text("def model_fn(model_dir): return 'leaked'\n")
    (tmp_path / "linked" / "code").mkdir(parents=True)
    os.symlink(elsewhere, tmp_path / "linked" / "code" / "inference.py")

    assert samples.load("linked", tmp_path / "linked").status == 500
    samples.process.wait_for_line("model linked: .*No handler knows this archive")
    samples.unload("linked")


def test_two_scripts_never_see_each_other(samples: Server, tmp_path: Path) -> None:
    """
    Archives with different inference.py, utils.py and data files of the same names.
    """
    for name in ("one", "two"):
        code = tmp_path / name / "code"
        code.mkdir(parents=True)
        (code / "inference.py").write_text(
            "import utils\n"
            "def model_fn(model_dir): return open('word.txt').read()\n"
            "def transform_fn(model, body, content_type, accept): return model + utils.WORD, 'text/plain'\n",
        )
        (code / "utils.py").write_text(f"WORD = '{name} in utils'\n")
        (tmp_path / name / "word.txt").write_text(f"{name} in a file, ")
    with samples.loaded("one", tmp_path / "one") as one, samples.loaded("two", tmp_path / "two") as two:
        for _ in range(2):
            assert one("x").text == "one in a file, one in utils"
            assert two("x").text == "two in a file, two in utils"


def test_requirements_are_checked_not_installed(samples: Server, samples_folder: Path, tmp_path: Path) -> None:
    """
    A model whose requirements.txt asks for what is not there says which package, in the log.
    """
    shutil.copytree(samples_folder / "listing_tone", tmp_path / "tone")
    (tmp_path / "tone" / "code" / "requirements.txt").write_text("numpy\nno-such-package-at-all>=2\n")

    assert samples.load("wanting", tmp_path / "tone").status == 500
    samples.process.wait_for_line("model wanting: .*asks for no-such-package-at-all>=2, which this server")
    samples.unload("wanting")


def test_the_samples_answer(samples: Server) -> None:
    """
    One server hosts all kinds at once, each with its own formats.
    """
    assert samples.invoke("houston", HOUSE).json()[0] == pytest.approx(384_000, rel=0.1)
    (row,) = samples.invoke("house_preprocessor", f"{HOUSE},y,n").json()
    assert row[6:] == [1.0, 0.0]
    prepared = ",".join(map(str, row))
    (prediction,) = samples.invoke("house_linear_learner", prepared).json()["predictions"]
    assert prediction["score"] == pytest.approx(400_000, rel=0.1)
    (price,) = samples.invoke("house_network", json.dumps([[1998, 2150, 3, 2.5, 0.4, 2]]), "application/json").json()[
        "predictions"
    ]
    assert price[0] == pytest.approx(790_000, rel=0.1)
    tone = samples.invoke("listing_tone", '{"text": "A sunny, charming house."}', "application/json")
    assert tone.json() == {"tone": "warm", "score": 4}


@pytest.mark.mxnet
def test_networks_of_another_python_environment_answer_beside_them(samples: Server, samples_folder: Path) -> None:
    """
    MXNet with numpy 1.23 and scikit-learn with numpy 2, in one server at the same time.
    """
    picture = (SAMPLES / "picture.png").read_bytes()
    for network in ("resnet_18", "squeezenet"):
        with samples.loaded(network, samples_folder / network) as invoke:
            best = invoke(picture, "application/x-image").json()
            assert len(best) == 5
            assert best[0].startswith("probability=0.")
            assert "random weights" in best[0]
            assert "The body is not a readable image" in invoke("no picture", "image/jpeg").message
            assert samples.invoke("house_preprocessor", f"{HOUSE},y,n").status == 200
