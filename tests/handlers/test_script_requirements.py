"""requirements.txt, as pip's documentation says that it is read, against what is installed here."""

from __future__ import annotations

import codecs
import logging
from importlib import metadata
from pathlib import Path

import pytest
from polyhost_handlers import script_requirements
from polyhost_handlers.errors import LoadFailed

NUMPY = metadata.version("numpy")
XGBOOST = metadata.version("xgboost-cpu")


def refused(root: Path, text: str | bytes, **files: str) -> str | None:
    """Why, without its beginning and its cure; None where all is there."""
    root.joinpath("requirements.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_txt", ".txt").replace("_toml", ".toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    try:
        script_requirements.check(root / "requirements.txt", root)
    except LoadFailed as error:
        message = error.message.removeprefix("Unable to load model: ")
        return message.partition(", which this server does not have.")[0].removeprefix("requirements.txt asks for ")
    return None


INSTALLED = {
    "nothing": "",
    "blank lines and comments": "\n# a comment\n   # another\n\n",
    "a comment after it": "numpy>=1.20  # as here\n",
    "a tab before the comment": "numpy\t# arrays\n",
    "spaces": " numpy >= 1.20 , < 99 \n",
    "windows": "numpy\r\nscipy\r\n",
    "another spelling": "NumPy\nPyYAML\nscikit_learn\n",
    "no end of line": "numpy",
    "options for finding": (
        "--index-url https://example.com/simple\n-i https://example.com\n--extra-index-url=https://example.com\n"
        "--find-links ./wheels\n-f https://example.com\n--no-index\n--pre\n--trusted-host example.com\n"
        "--no-binary :all:\n--only-binary=numpy\n--prefer-binary\n--require-hashes\n--use-feature=fast-deps\n"
    ),
    "a hash": "numpy>=1.20 --hash=sha256:00 --hash=sha256:01\n",
    "hashes on lines of their own": "numpy>=1.20 \\\n    --hash=sha256:00 \\\n    --hash=sha256:01\nscipy\n",
    "a continued line": "numpy\\\n>=1.20\n",
    "a comment ends a continued line": "numpy \\\n# more\nscipy\n",
    "a backslash in a comment continues nothing": "# nothing-like-this \\\nnumpy\n",
    "other options of a line": "numpy --global-option=x --config-settings a=b\n",
    "a marker that is false": "nothing-like-this; python_version < '3'\n",
    "a marker that is true": "numpy>=1.20; python_version >= '3' and sys_platform != 'win32'\n",
    "a pre-release would do": "numpy>=1.0a1\n",
    "a compatible release": f"numpy~={NUMPY.rpartition('.')[0]}\n",
    "extras": "moto[s3,server]\nmoto[server]\n",
    "an extra it does not have": "numpy[nothing]\n",
    "the other wheel of it": "xgboost\n",
    "the other wheel of it, with a version": f"xgboost=={XGBOOST}\n",
    "the other wheel of it, with extras": "xgboost[scikit-learn]\n",
    "the old name of it": "sklearn\nsklearn==0.0\n",
    "what is stood in for": "sagemaker-containers>=2.8\n",
    "a url with its name": "numpy @ https://example.com/numpy.zip\n",
    "a wheel": "https://example.com/numpy-1.0-py3-none-any.whl\n",
    "a wheel beside it": "./wheels/scikit_learn-1.0-cp39-cp39-linux_x86_64.whl\n",
    "a wheel by its name alone": "numpy-1.0-py3-none-any.whl\n",
    "a source archive": "https://example.com/numpy-1.0.tar.gz#sha256=00\n",
    "a source archive by its name alone": "numpy-1.0.tar.gz\n",
    "a repository": "git+https://github.com/numpy/numpy.git@v1#egg=numpy\n",
    "a repository with an extra": "git+ssh://git@github.com/numpy/numpy@main#subdirectory=a&egg=numpy[x]\n",
    "one to edit": "-e git+https://github.com/numpy/numpy#egg=numpy\n--editable=git+https://example.com/x#egg=scipy\n",
    "a place with a marker": "./nothing-1.0-py3-none-any.whl ; python_version < '3'\n",
    "a variable": "numpy>=${POLYHOST_TEST_VERSION}\n",
}


@pytest.mark.parametrize("what", INSTALLED)
def test_what_is_installed(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHOST_TEST_VERSION", "1.20")
    assert refused(tmp_path, INSTALLED[what]) is None


MISSING = {
    "one": ("nothing-like-this\n", "nothing-like-this"),
    "two": ("numpy\nnothing-like-this==1.0\nnor_this>2\n", "nothing-like-this==1.0, nor_this>2"),
    "another version": ("numpy<1\n", f"numpy<1 (numpy {NUMPY} is here)"),
    "another version of the other wheel": ("xgboost<1\n", f"xgboost<1 (xgboost-cpu {XGBOOST} is here)"),
    "with hashes": ("nothing-like-this==1 \\\n  --hash=sha256:00\n", "nothing-like-this==1"),
    "with a marker": ("nothing-like-this; python_version > '3'\n", "nothing-like-this; python_version > '3'"),
    "a repository": (
        "git+https://github.com/org/repo.git@v1#egg=repo\n",
        "git+https://github.com/org/repo.git@v1#egg=repo",
    ),
    "a wheel": ("./nothing_like-1.0-py3-none-any.whl\n", "./nothing_like-1.0-py3-none-any.whl"),
    "one to edit": ("-e git+https://example.com/x#egg=nothing-like\n", "git+https://example.com/x#egg=nothing-like"),
    "a variable": ("nothing-like-this==${POLYHOST_TEST_VERSION}\n", "nothing-like-this==${POLYHOST_TEST_VERSION}"),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHOST_TEST_VERSION", "7")
    text, right = MISSING[what]
    assert refused(tmp_path, text) == right


def installed(site: Path, name: str, version: str, *more: str) -> Path:
    """A distribution's own description, as pip leaves it."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *more]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    return info


def test_extras_bring_what_they_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extras of extras too, and one that asks for itself."""
    adds = [
        "Requires-Dist: numpy",
        "Requires-Dist: nothing-like>=2; extra == 'far'",
        "Requires-Dist: shapes[far]; extra == 'all'",
        "Requires-Dist: shapes[loop]; extra == 'loop'",
        "Requires-Dist: numpy>=1; extra == 'near'",
        "Requires-Dist: nothing-like; extra == 'old' and python_version < '3'",
    ]
    installed(tmp_path / "site", "shapes", "1.0", *adds)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert refused(tmp_path, "shapes[near,old,loop]\n") is None
    assert refused(tmp_path, "shapes[near,far]\n") == "shapes[near,far] (nothing-like>=2 is missing)"
    assert refused(tmp_path, "shapes[all]\n") == "shapes[all] (shapes[far] is missing)"


def test_only_so_many_are_listed(tmp_path: Path) -> None:
    text = "".join(f"nothing-{n}\n" for n in range(30))
    assert (refused(tmp_path, text) or "").endswith("nothing-19 and 10 more")


def test_the_way_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("nothing-like-this>1\nnor-this\n")
    with pytest.raises(LoadFailed) as raised:
        script_requirements.check(tmp_path / "requirements.txt", tmp_path)
    assert raised.value.message == (
        "Unable to load model: requirements.txt asks for nothing-like-this>1, nor-this, which this server does not "
        "have. Run pip install 'nothing-like-this>1' nor-this in the environment of the server, or build an image "
        "with it."
    )


@pytest.mark.parametrize(
    "text", ["numpy==\n", "numpy>=1 scipy\n", "-\n", "===\n", "\udcff\n".encode(errors="surrogateescape"), "a b\n"]
)
def test_what_pip_does_not_take(text: str | bytes, tmp_path: Path) -> None:
    message = refused(tmp_path, text) or ""
    assert message.startswith("requirements.txt: '")
    assert message.endswith("' is not a requirement that pip takes.")


@pytest.mark.parametrize(
    "encoded",
    [
        "nothing-é\n".encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + "numpy\nnothing-é".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "numpy\nnothing-é".encode("utf-16-be"),
        codecs.BOM_UTF32_LE + "numpy\nnothing-é".encode("utf-32-le"),
        codecs.BOM_UTF32_BE + "numpy\nnothing-é".encode("utf-32-be"),
        "# -*- coding: latin-1 -*-\nnothing-é\n".encode("latin-1"),
        "#\n# vim: set fileencoding:cp1252 :\nnothing-é\n".encode("cp1252"),
        "nothing-é\n".encode(),
    ],
    ids=["utf-8 mark", "utf-16", "utf-16 big", "utf-32", "utf-32 big", "latin-1", "on the second line", "utf-8"],
)
def test_encodings(encoded: bytes, tmp_path: Path) -> None:
    """The sentence shows the letter as it was meant: a name has no é."""
    assert refused(tmp_path, encoded) == "requirements.txt: 'nothing-é' is not a requirement that pip takes."


def test_a_comment_in_some_other_encoding_does_no_harm(tmp_path: Path) -> None:
    assert refused(tmp_path, "numpy # für alle\n".encode("latin-1")) is None
    assert refused(tmp_path, b"# coding: no-such-encoding\nnumpy\n") is None


@pytest.mark.parametrize("option", ["-r more.txt", "-rmore.txt", "--requirement more.txt", "--requirement=more.txt"])
def test_other_files(option: str, tmp_path: Path) -> None:
    """Their names are relative to the file that names them."""
    assert refused(tmp_path, f"{option}\n", more_txt="-r deeper/last.txt\n", deeper__last_txt="nothing-like\n") == (
        "nothing-like"
    )


@pytest.mark.parametrize("option", ["-c limits.txt", "-climits.txt", "--constraint=limits.txt"])
def test_constraints_limit_what_is_asked_for(option: str, tmp_path: Path) -> None:
    limits = "numpy<1\nnothing-like-this==1\n"
    assert refused(tmp_path, f"{option}\nscipy\n", limits_txt=limits) is None
    assert refused(tmp_path, f"numpy\n{option}\n", limits_txt=limits) == f"numpy (numpy {NUMPY} is here)"


def test_files_that_name_each_other(tmp_path: Path) -> None:
    """Each is read once, however often it is named."""
    files = {f"r{n}_txt": f"-r r{n + 1}.txt\n" * 9 for n in range(20)}
    assert refused(tmp_path, "-r r0.txt\n", **files, r20_txt="-r requirements.txt\nnothing-like\n") == "nothing-like"


@pytest.mark.parametrize("name", ["nowhere.txt", "../outside.txt", "/etc/hostname", "link.txt"])
def test_files_that_are_not_in_the_archive(name: str, tmp_path: Path) -> None:
    """Not read, so that no error can quote them."""
    (tmp_path / "outside.txt").write_text("the secret\n")
    root = tmp_path / "code"
    root.mkdir()
    (root / "link.txt").symlink_to(tmp_path / "outside.txt")
    assert refused(root, f"-r {name}\n") == f"requirements.txt names {name}, which is not in the archive."


def test_files_elsewhere_in_the_archive(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "requirements.txt").write_text("-r ../more.txt\n")
    (tmp_path / "more.txt").write_text("nothing-like\n")
    with pytest.raises(LoadFailed, match="asks for nothing-like, which"):
        script_requirements.check(tmp_path / "code" / "requirements.txt", tmp_path)


@pytest.mark.parametrize(
    ("project", "text"),
    [
        ("pyproject.toml", '[project]\nname = "nothing-like"\n'),
        ("setup.cfg", "[metadata]\nname = nothing-like\n"),
        ("setup.py", "setup(\n    name='nothing-like',\n)\n"),
    ],
)
@pytest.mark.parametrize("line", ["./lib", "lib/inner/..", "-e lib", "./lib[extra]", "file:lib"])
def test_a_project_beside_it(line: str, project: str, text: str, tmp_path: Path) -> None:
    """A folder is known by the name that its project gives itself."""
    (tmp_path / "lib" / "inner").mkdir(parents=True)
    (tmp_path / "lib" / project).write_text(text)
    assert refused(tmp_path, f"{line}\n") == line.removeprefix("-e ")
    (tmp_path / "lib" / project).write_text(text.replace("nothing-like", "numpy"))
    assert refused(tmp_path, f"{line}\n") is None


@pytest.mark.parametrize(
    "line", ["git+https://example.com/org/repo.git@v1", "https://example.com/main.zip", "-r https://example.com/r.txt"]
)
def test_what_tells_no_name_is_logged(line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The import will tell."""
    caplog.set_level(logging.WARNING, "polyhost.handlers")
    assert refused(tmp_path, f"{line}\n") is None
    assert "not checked" in caplog.messages[0]


def test_what_was_installed_from_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """pip writes it into direct_url.json (PEP 610)."""
    written = '{"url": "https://example.com/org/repo.git", "vcs_info": {"vcs": "git"}}'
    (installed(tmp_path / "site", "repo", "1.0") / "direct_url.json").write_text(written)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert refused(tmp_path, "git+https://example.com/org/repo.git@v1\n") is None
    assert caplog.messages == []


def test_an_import_that_a_wheel_of_another_name_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known by no table of ours: what is imported has the name that is asked for."""
    (installed(tmp_path / "site", "shapes-gpu", "2.0") / "top_level.txt").write_text("shapes\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert refused(tmp_path, "shapes>=1\n") is None
    assert refused(tmp_path, "shapes<2\n") == "shapes<2 (shapes-gpu 2.0 is here)"


@pytest.mark.parametrize("have", ["opencv-python-headless", "opencv-contrib-python", "opencv-python"])
def test_variants_of_opencv(have: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path / "site", have, "4.9.0.80")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert refused(tmp_path, "opencv-python>=4\nopencv-contrib-python-headless\n") is None
    assert refused(tmp_path, "opencv-python<4\n") == f"opencv-python<4 ({have} 4.9.0.80 is here)"


def test_no_file_asks_for_nothing(tmp_path: Path) -> None:
    script_requirements.check(tmp_path / "requirements.txt", tmp_path)


def test_long_lines_are_read_in_linear_time(tmp_path: Path) -> None:
    """Blanks, brackets and options without end; the tests' own limit would end what takes its square."""
    blanks = " " * 400_000
    text = f"numpy{blanks}\nscipy{blanks}# c\n{blanks}\n" + "-i " * 200_000 + "\n" + "x\\\n" * 10_000 + "\n"
    assert "not have" not in (refused(tmp_path, text) or "")
