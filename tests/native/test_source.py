"""What an archive says of itself is read in the server: it cannot choose what that costs, nor break it."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhost.archives import staging_of
from polyhost.engine import source as module
from polyhost.engine.errors import BadRequest, EngineError
from polyhost.engine.source import Inspector, Source, is_outside
from polyhost.trees import remove_tree
from polyhost.unpacking import Unpacker

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
OF_A_MANIFEST = st.fixed_dictionaries(
    {},
    optional={
        "model": JSON | st.fixed_dictionaries({}, optional={"handler": JSON, "modelName": JSON, "modelVersion": JSON}),
        "engine": JSON | st.fixed_dictionaries({}, optional={"engineName": JSON}),
    },
)


def inspected(folder: Path, text: bytes) -> Source:
    (folder / "MAR-INF").mkdir(parents=True, exist_ok=True)
    (folder / "MAR-INF" / "MANIFEST.json").write_bytes(text)
    return inspect(folder)


def inspect(folder: Path, handler: str = "", default_handler: str = "service:handle") -> Source:
    inspector = Inspector(
        model_roots=(folder,), default_handler=default_handler, environ={}, run_folder=folder / "run",
        unpacker=Unpacker({}, 60.0),
    )  # fmt: skip
    return asyncio.run(inspector.inspect(str(folder), handler, ()))


def test_a_manifest_names_the_handler_the_model_and_its_version(tmp_path: Path) -> None:
    model = b'{"handler": "mine:handle", "modelName": "m", "modelVersion": 1.5}'
    source = inspected(tmp_path, b'{"model": %b, "engine": {"engineName": "MXNet"}}' % model)

    assert (source.handler, source.manifest_name, source.version, source.engine) == ("mine:handle", "m", "1.5", "MXNet")


@pytest.mark.parametrize("text", [b"{}", b"[]", b"null", b'{"model": null, "engine": null}'])
def test_a_manifest_that_says_nothing(tmp_path: Path, text: bytes) -> None:
    assert inspected(tmp_path, text).handler == "service:handle"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "MANIFEST.json is not JSON"),
        (b"\xff\xfe\x00", "MANIFEST.json is not JSON"),
        (b"[" * 100_000, "MANIFEST.json is not JSON"),
        (b'{"model": 1}', "MANIFEST.json is not a manifest: Expected `object | null`, got `int`"),
        (b'{"model": {"handler": ["a"]}}', "MANIFEST.json is not a manifest: Expected `str | null`, got `array`"),
        (b'{"engine": []}', "MANIFEST.json is not a manifest"),
        (b" " * (1024**2 + 1), "MANIFEST.json has more than 1048576 bytes"),
    ],
)
def test_a_manifest_that_is_none_is_a_sentence(tmp_path: Path, text: bytes, words: str) -> None:
    with pytest.raises(EngineError, match=words.replace("|", r"\|")):
        inspected(tmp_path, text)


def test_a_folder_in_a_manifests_place_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "MAR-INF" / "MANIFEST.json").mkdir(parents=True)

    with pytest.raises(EngineError, match=r"MANIFEST.json cannot be read: Is a directory"):
        inspect(tmp_path)


@given(OF_A_MANIFEST.map(lambda document: json.dumps(document).encode()) | st.binary())
def test_any_manifest_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-manifest"
    try:
        source = inspected(folder, text)
    except EngineError:
        return
    assert isinstance(source.handler, str)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("", False),
        ("service:handle", False),
        ("package.service:handle", False),
        ("service.py:handle", False),
        ("code/service.py:handle", False),
        ("{root}/shared/service.py:handle", False),
        ("../other/service.py:handle", False),
        ("../../service.py:handle", True),
        ("/etc/service.py:handle", True),
        ("/etc/service.py", True),
        ("{root}/../service.py:handle", True),
        ("link/service.py:handle", True),
    ],
)
def test_a_handlers_file_lies_in_the_model_or_under_a_root(tmp_path: Path, handler: str, expected: bool) -> None:
    root = tmp_path / "root"
    (root / "model").mkdir(parents=True)
    (root / "model" / "link").symlink_to("/etc")
    assert is_outside(handler.replace("{root}", str(root)), root / "model", (root,)) is expected


@pytest.mark.parametrize("of", ["the client", "the manifest"])
def test_a_handler_from_elsewhere_is_refused(tmp_path: Path, of: str) -> None:
    folder = tmp_path / "model"
    if of == "the manifest":
        with pytest.raises(BadRequest, match="lies outside of the model and of the model roots"):
            inspected(folder, b'{"model": {"handler": "/etc/service.py:handle"}}')
    else:
        folder.mkdir()
        with pytest.raises(BadRequest, match="lies outside of the model and of the model roots"):
            inspect(folder, "/etc/service.py:handle")


def test_the_operators_own_handler_may_lie_anywhere(tmp_path: Path) -> None:
    assert inspect(tmp_path, "/opt/ours/service.py:handle", "/opt/ours/service.py:handle").handler


class Unpacking:
    """In place of an unpacker: it has not finished yet."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()

    async def unpack(self, _: Path, to: Path) -> None:
        staging_of(to).mkdir(parents=True)
        self.has_begun.set()
        await asyncio.Event().wait()


def test_an_unpacking_that_ends_while_its_files_are_removed_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wanted it has gone. Where it was finished between two looks, all of it stayed."""

    def remove_and_finish(left: Path) -> bool:
        is_gone = remove_tree(left)
        for staging in (tmp_path / "run").glob(".unpacking-*"):
            staging.rename(staging.with_name(staging.name.removeprefix(".unpacking-")))
        return is_gone

    async def leave() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        unpacking = Unpacking()
        (tmp_path / "model.tar").touch()
        inspector = Inspector(
            model_roots=(tmp_path,), default_handler="service:handle", environ={}, run_folder=tmp_path / "run",
            unpacker=cast("Unpacker", unpacking),
        )  # fmt: skip
        inspecting = asyncio.ensure_future(inspector.inspect(str(tmp_path / "model.tar"), ""))
        await unpacking.has_begun.wait()
        inspecting.cancel()
        await asyncio.gather(inspecting, return_exceptions=True)

    monkeypatch.setattr(module, "remove_tree", remove_and_finish)
    asyncio.run(leave())  # which waits for its threads
    assert list((tmp_path / "run").iterdir()) == []
