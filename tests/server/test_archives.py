"""What tar packs is unpacked as tar does; hostile archives are refused whole, with nothing written anywhere."""

from __future__ import annotations

import gzip
import pickle
import re
import subprocess
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from polyhost.archives import ArchiveTooLarge, Limits, unpack
from polyhost.errors import ArchiveRefused
from support.packing import special, tar, zipped


def tar_of(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> Path:
    path.write_bytes(tar(*members, mode=mode))
    return path


def test_files_and_folders_are_unpacked(tmp_path: Path) -> None:
    """
    What a model's archive holds, also in folders that have no entry of their own.
    """
    archive = tar_of(tmp_path / "a.tar.gz", ("model", b"weights"), ("./code/inference.py", b"pass"))
    unpack(archive, tmp_path / "to")

    assert (tmp_path / "to" / "model").read_bytes() == b"weights"
    assert (tmp_path / "to" / "code" / "inference.py").read_bytes() == b"pass"


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (("../evil", b"x"), "leads out of it"),
        (("a/../../evil", b"x"), "leads out of it"),
        (("/etc/evil", b"x"), "leads out of it"),
        (special("link", tarfile.SYMTYPE, "/etc/passwd"), "neither file nor folder"),
        (special("link", tarfile.SYMTYPE, "model"), "neither file nor folder"),
        (special("link", tarfile.LNKTYPE, "/etc/passwd"), "leads out of it: /etc/passwd"),
        (special("link", tarfile.LNKTYPE, "../model"), "leads out of it: ../model"),
        (special("../link", tarfile.LNKTYPE, "model"), "leads out of it: ../link"),
        (
            special("link", tarfile.LNKTYPE, "later"),
            "a hard link to a file that does not come before it: link to later",
        ),
        (special("link", tarfile.LNKTYPE, "."), "a hard link to a file that does not come before it"),
        (special("new", tarfile.LNKTYPE, "new"), "a hard link to a file that does not come before it: new to new"),
        (special("model", tarfile.DIRTYPE), "both a file and a folder: model"),
        (("caf\udce9", b"x"), r"a name that is not UTF-8: caf\\xe9\. Rename it"),
        (special("caf\udce9", tarfile.DIRTYPE), r"a name that is not UTF-8: caf\\xe9\. Rename it"),
        (special("caf\udce9", tarfile.LNKTYPE, "model"), r"a name that is not UTF-8: caf\\xe9\. Rename it"),
        (special("link", tarfile.LNKTYPE, "caf\udce9"), r"a name that is not UTF-8: caf\\xe9\. Rename it"),
        (("model/inside", b"x"), "both a file and a folder: model/inside"),
        (special(".", tarfile.LNKTYPE, "model"), "both a file and a folder"),
        (special("device", tarfile.CHRTYPE), "neither file nor folder"),
        (special("pipe", tarfile.FIFOTYPE), "neither file nor folder"),
    ],
)
def test_an_entry_that_would_harm_refuses_the_archive(
    tmp_path: Path, member: tuple[str, bytes] | tarfile.TarInfo, words: str,
) -> None:  # fmt: skip
    """
    Also what came before it is not there.
    """
    archive = tar_of(tmp_path / "a.tar.gz", ("model", b"weights"), member)
    with pytest.raises(ArchiveRefused, match=words):
        unpack(archive, tmp_path / "in" / "to")

    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz", "in"] or not (tmp_path / "evil").exists()
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize("entry", [special("a/" * 1500, tarfile.DIRTYPE), ("a/" * 40 + "model", b"x")])
def test_folders_within_folders_have_a_limit(tmp_path: Path, entry: tuple[str, bytes] | tarfile.TarInfo) -> None:
    """One small archive of 1,500 nested folders kept the server from cleaning up, and then from starting."""
    archive = tar_of(tmp_path / "deep.tar.gz", ("model", b"x"), entry)

    with pytest.raises(ArchiveRefused, match=r"folders more than 32 deep: a/a/.* Pack it flatter\."):
        unpack(archive, tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["deep.tar.gz"]


def test_a_file_and_a_folder_of_one_name(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", ("model/weights", b"x"), ("model", b"x"))
    with pytest.raises(ArchiveRefused, match="has a name that is both a file and a folder: model"):
        unpack(archive, tmp_path / "to")


@pytest.mark.parametrize(
    "names", [("model", "model"), ("model", "./model"), ("./a/model", "a//model"), ("a/model", "a/./model")]
)
@pytest.mark.parametrize("form", ["tar", "zip"])
def test_of_entries_with_one_name_the_last_wins(form: str, names: tuple[str, str], tmp_path: Path) -> None:
    """
    As tar and unzip do it; nothing of a longer one before it stays.
    """
    members = [(names[0], b"the first, which is longer"), (names[1], b"second")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the second
        (tmp_path / "a").write_bytes(tar(*members) if form == "tar" else zipped(*members))
    unpack(tmp_path / "a", tmp_path / "to")

    (path,) = (path for path in (tmp_path / "to").rglob("*") if path.is_file())
    assert path.read_bytes() == b"second"


def packed_by(command: str, folder: Path) -> Path:
    subprocess.run(["bash", "-ec", command], cwd=folder, check=True, capture_output=True)
    return folder / "a.tar"


@pytest.mark.parametrize(
    "command",
    [
        "tar cf a.tar model model",  # GNU tar writes a hard link of the file to itself
        "tar cf a.tar . ./model",
        "tar cf a.tar model && tar rf a.tar model",
        "ln model other && tar cf a.tar model other",
        "mkdir b && ln model b/other && tar czf a.tar model b",
        "echo old > old && mv model new && mv old model && tar cf a.tar model && mv new model && tar rf a.tar model",
    ],
)
def test_what_gnu_tar_packs_twice_or_links_is_as_tar_unpacks_it(command: str, tmp_path: Path) -> None:
    """
    The right files are those that tar itself extracts. Linked ones are copies of their own.
    """
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model").write_bytes(b"weights")
    archive = packed_by(command, tmp_path / "in")
    unpack(archive, tmp_path / "to")
    (tmp_path / "right").mkdir()
    subprocess.run(["tar", "xf", archive, "-C", tmp_path / "right"], check=True)

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(tmp_path / "to") == contents(tmp_path / "right") != {}
    assert {path.stat().st_nlink for path in (tmp_path / "to").rglob("*") if path.is_file()} == {1}


def test_a_link_keeps_what_its_file_was_when_it_came(tmp_path: Path) -> None:
    """
    A later entry of the file's name does not change the link.
    """
    archive = tar_of(
        tmp_path / "a.tar.gz", ("model", b"first"), special("link", tarfile.LNKTYPE, "./model"), ("model", b"second")
    )
    unpack(archive, tmp_path / "to")

    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == {
        "link": b"first",
        "model": b"second",
    }


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_folders_that_no_entry_is_for_have_a_limit(form: str, tmp_path: Path) -> None:
    """Or 100,000 files would make three million folders."""
    names = [f"{number}/a/b/c/d/model" for number in range(10)]
    archive = tmp_path / "archive"
    archive.write_bytes((tar if form == "tar" else zipped)(*((name, b"x") for name in names)))
    with pytest.raises(ArchiveRefused, match="has more than 49 folders"):
        unpack(archive, tmp_path / "to", Limits(entries=49))
    assert not (tmp_path / "to").exists()
    unpack(archive, tmp_path / "to", Limits(entries=50))


def test_links_count_as_the_bytes_they_copy(tmp_path: Path) -> None:
    """
    Or a short archive would fill the disk.
    """
    links = [special(f"link{number}", tarfile.LNKTYPE, "model") for number in range(9)]
    archive = tar_of(tmp_path / "a.tar.gz", ("model", bytes(100_000)), *links)
    with pytest.raises(ArchiveTooLarge, match="unpacks to more than 900000 bytes"):
        unpack(archive, tmp_path / "to", Limits(total_bytes=900_000))
    with pytest.raises(ArchiveRefused, match="has more than 9 entries"):
        unpack(archive, tmp_path / "to", Limits(entries=9))
    unpack(archive, tmp_path / "to", Limits(entries=10))


XGBOOST = ROOT / "tests" / "data" / "xgboost"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def onnx_bytes() -> bytes:
    import onnx

    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    one, two = (value(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node("Neg", ["x"], ["y"])], "g", [one], [two]))
    return bytes(model.SerializeToString())


def pickled(protocol: int) -> Callable[[], bytes]:
    def dump() -> bytes:
        from sklearn.linear_model import LinearRegression

        return pickle.dumps(LinearRegression(), protocol)

    return dump


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty, not an archive: an upload or download was cut off"),
        (LFS, "is a pointer of Git LFS, not an archive: run git lfs pull"),
        *(
            ((XGBOOST / name).read_bytes(), "is an XGBoost model, not an archive: pack it first: tar -czf model.tar.gz")
            for name in ("json-1.3.json", "ubj-3.0.ubj", "old-binary-0.90.model", "pickle-0.90.pkl", "pickle-3.0.pkl")
        ),
        (gzip.compress((XGBOOST / "json-1.3.json").read_bytes()), "is an XGBoost model, not an archive"),
        (onnx_bytes, "is an ONNX network, not an archive"),
        (pickled(2), "is a pickle of sklearn, not an archive"),
        (pickled(5), "is a pickle of sklearn, not an archive"),
        (pickle.dumps({"a": 1}), "is a pickle, not an archive"),
        (b"CBM1@<\0\0\x14\0", "is a CatBoost model, not an archive: pack it first"),
        (b"tree\nversion=v4\nnum_class=1\n", "is a LightGBM model, not an archive"),
        (b'<?xml version="1.0"?>\n<PMML version="4.4">', "is a PMML document, not an archive"),
        (b"\x89HDF\r\n\x1a\n\0", "is an HDF5 file, as Keras saves models, not an archive"),
        (b"\x1c\0\0\0TFL3", "is a TensorFlow Lite model, not an archive"),
        (b'\x40\0\0\0\0\0\0\0{"a":1}', "is a file of safetensors, not an archive"),
        (b"<!DOCTYPE html><html>", "is an HTML page, not an archive: look at what the download"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "is an XML document, not an archive: look at"),
        (b'{"message": "Forbidden"}', "is a JSON document, not an archive: look at"),
        (b"\x28\xb5\x2f\xfd\x04", "is compressed by zstd, not an archive: pack the model as tar.gz"),
    ],
    ids=lambda value: value[3:25] if isinstance(value, str) else "",
)
def test_what_is_no_archive_is_called_by_its_name(
    content: bytes | Callable[[], bytes], what: str, tmp_path: Path
) -> None:
    """
    What people put where an archive belongs, each with what to do.
    """
    (tmp_path / "a.tar.gz").write_bytes(content if isinstance(content, bytes) else content())
    with pytest.raises(ArchiveRefused, match=f"^a.tar.gz {re.escape(what)}"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "to")


@pytest.mark.parametrize("name", ["<html", '{"a": 1}', "CBM1", "GGUF", "PAR1", "[1]", "tree\nversion="])
def test_a_tar_whose_first_file_has_a_strange_name_is_a_tar(name: str, tmp_path: Path) -> None:
    """
    A plain tar begins with that name.
    """
    unpack(tar_of(tmp_path / "a.tar", (name, b"x"), mode="w"), tmp_path / "to")

    assert (tmp_path / "to" / name).read_bytes() == b"x"


def many(tmp_path: Path) -> Path:
    return tar_of(tmp_path / "a.tar.gz", *((f"file{number}", b"") for number in range(20)))


def large(tmp_path: Path) -> Path:
    return tar_of(tmp_path / "a.tar.gz", ("zeros", bytes(2_000_000)))


def truncated(tmp_path: Path) -> Path:
    path = tar_of(tmp_path / "a.tar.gz", ("noise", bytes(range(256)) * 100))
    path.write_bytes(path.read_bytes()[:-40])
    return path


def no_tar(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"hello"))
    return path


@pytest.mark.parametrize("make", [many, large, truncated, no_tar])
def test_bombs_and_broken_archives_are_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """
    Too many entries, too many bytes, an archive that ends too early, or none at all.
    """
    with pytest.raises(ArchiveRefused):
        unpack(make(tmp_path), tmp_path / "in" / "to", Limits(entries=10, ratio=20, ratio_floor_bytes=1000))

    assert list((tmp_path / "in").iterdir()) == []


@given(st.binary(max_size=600))
def test_any_bytes_are_an_archive_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """
    Nothing but ArchiveRefused comes out of bytes that somebody else chose.
    """
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.tar").write_bytes(data)
    with pytest.raises(ArchiveRefused):
        unpack(folder / "a.tar", folder / "to")
