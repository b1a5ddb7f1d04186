"""What a server tells somebody at a terminal to try."""

from __future__ import annotations

from pathlib import Path

import pytest
from polyhost.config import Config
from polyhost.greeting import Call, greeting


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "customers").mkdir()
    for name in ("b.tar.gz", "customers/a.tar.gz", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


def config_of(models: Path | str, **settings: str) -> Config:
    given = {name: [text] for name, text in settings.items()}
    return Config.build({"models": [str(models)], "port": ["1234"], **given}, {})


def test_the_first_model_of_a_folder_is_called(models: Path) -> None:
    text = greeting(config_of(models))

    assert f"2 models are in {models}/, and each is loaded when it is first called" in text
    assert "curl -s http://127.0.0.1:1234/invocations" in text
    assert "-H 'X-Amzn-SageMaker-Target-Model: b.tar.gz'" in text
    assert "EndpointName=\"polyhost\", TargetModel='b.tar.gz'" in text
    assert "The dashboard is at http://127.0.0.1:1234/" in text


def test_one_model_is_one(models: Path) -> None:
    assert f"One model is in {models}/customers/" in greeting(config_of(models / "customers"))


def test_a_folder_without_models_says_how_one_comes_there(tmp_path: Path) -> None:
    text = greeting(config_of(tmp_path))

    assert f"There is no archive of a model in {tmp_path}/ yet" in text
    assert f"polyhost models add FOLDER --models {tmp_path}/" in text
    assert "curl" not in text


def test_a_bucket_is_not_asked() -> None:
    text = greeting(config_of("s3://houses/models/"))

    assert "polyhost models list --models s3://houses/models/" in text
    assert "X-Amzn-SageMaker-Target-Model: MODEL.tar.gz" in text


def test_calls_that_are_given_are_shown(models: Path) -> None:
    calls = [
        Call("one.tar.gz", "the first", "application/json", '{"it\'s": 1}'),
        Call("two.tar.gz", "the second", "image/png", "@/pictures/a b.png"),
    ]
    text = greeting(config_of(models), calls)

    assert """-H 'Content-Type: application/json' -d '{"it'"'"'s": 1}'""" in text
    assert "-H 'Content-Type: image/png' --data-binary '@/pictures/a b.png'" in text
    assert "b.tar.gz" not in text
    assert text.count("import boto3") == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "http://127.0.0.1:1234/invocations"),
        ({"host": "::"}, "http://[::1]:1234/invocations"),
        ({"host": "models.example"}, "http://models.example:1234/invocations"),
        ({"tls_cert": "cert.pem"}, "https://127.0.0.1:1234/invocations"),
        ({"auth": "sigv4"}, "--aws-sigv4 aws:amz:us-east-1:sagemaker --user KEY_ID:SECRET"),
        ({"auth": "sigv4"}, 'aws_access_key_id="KEY_ID"'),
        ({"endpoint_name": "houses"}, 'EndpointName="houses"'),
    ],
)
def test_the_server_is_called_as_it_is_set(models: Path, settings: dict[str, str], words: str) -> None:
    assert words in greeting(config_of(models, **settings))


def test_a_log_for_machines_has_no_greeting(models: Path) -> None:
    assert greeting(config_of(models, log_format="json")) == ""
    assert greeting(Config()) == ""
