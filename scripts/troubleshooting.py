"""
The page of error texts, made from the code: `python scripts/troubleshooting.py` (`--write` puts it into the page).

Statuses and exit codes come from the classes of errors, with what each class says in `advice`. Texts come from where they
are raised. A text that says itself what to do is not repeated; for the others docs/troubleshooting.toml has a
cure, or their part of the page has one for all. A new text needs nothing but `--write`, unless it can say more.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
CURES = PAGE.with_suffix(".toml")
SOURCES = (ROOT / "container", ROOT / "aws", ROOT / "handlers")
# What all failed loads begin with; longer texts are cut.
LOAD, MOST_CHARS = "Unable to load model: ", 110
BEGIN, END = "<!-- errors: scripts/troubleshooting.py --write -->", "<!-- end of the errors -->"

# The roots of the trees of errors that reach somebody; what derives from them is found.
ROOTS = frozenset(
    {
        "PolyhostError", "EngineError", "EndpointError", "HostingError", "HandlerError", "Unusable", "BadToken", "BadJob",
        "BadManifest", "BadRecord", "JobFailed",
    }
)  # fmt: skip
# Functions that make one of them, and what a worker answers.
MAKERS = frozenset({"invalid", "too_large", "kind", "_missing", "_failed", "_invalid", "_incomplete", "Failed"})
# Of these modules ValueErrors become a setting's error, or a request's, as they are.
PARSERS = frozenset({"config.py", "emf.py", "filters.py"})
# Fakes that the package brings for tests.
NOT_OURS = frozenset({"testing.py"})

# Exit codes that no class of ours has.
SIGNALS = {
    ("130",): "Ctrl-C came while starting, or twice: requests in flight were not waited for.",
    ("137",): "The kernel killed it for memory, or a platform that waits less than --drain-secs.",
    ("143",): "SIGTERM came twice: requests in flight were not waited for.",
}

# A text says itself what to do: in the imperative after a break or a link, or by what is needed or allowed.
_VERBS = (
    "add|allow|ask|begin|build|call|change|choose|check|convert|copy|correct|cut|define|delete|download|encode|ensure|escape"
    "|export|fill|free|get|give|install|invoke|keep|leave|let|load|log|lower|make|mend|mount|move|name|open|pack|pass|pick"
    "|point|post|pull|push|put|quote|raise|read|remove|rename|repeat|resend|retry|retrain|run|save|say|see|send|serve|set"
    "|shorten|show|sign|speak|spell|split|start|stop|store|switch|take|tell|train|try|turn|unload|unset|update|upgrade"
    "|upload|use|wait|write"
)
_SAYS_WHAT_TO_DO = re.compile(
    rf"(?:^|[:.;,(…] ?|\b(?:or|and|please|then) )(?:{_VERBS})\b"
    r"|\bmust\b|\bneeds?\b|\bbelongs?\b|is required|at (?:most|least)|[Pp]lease|are supported|is supported here"
    r"|are allowed|letters, digits|of the form|from […\w]+ to […\w]+|\b(?:there are|it has|its inputs? (?:is|are)) …",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ErrorText:
    """`…` stands for what is only known when it happens; `module` is relative to the source folder."""

    module: str
    line: int
    text: str

    @property
    def says_what_to_do(self) -> bool:
        return _SAYS_WHAT_TO_DO.search(self.text) is not None

    @property
    def is_fixed(self) -> bool:
        """Whether it has words of its own: what only passes on another's text has none."""
        return re.search(r"\w{2,}.*\w{2,}", self.text.removeprefix(LOAD).replace("…", " ")) is not None


@dataclass
class Section:
    """A part of the page: the modules or beginnings of the texts that belong to it, and what helps against them."""

    title: str
    do: str
    modules: Sequence[str] = ()
    begins: str = ""
    cures: Sequence[Mapping[str, Any]] = ()
    texts: list[str] = field(default_factory=list)

    def takes(self, text: ErrorText) -> bool:
        if self.begins:
            return text.text.startswith(self.begins)
        return text.module.startswith(tuple(self.modules))


# Reading the code


@functools.cache
def error_texts() -> tuple[ErrorText, ...]:
    """All that has words, in the order of the code."""
    return tuple(
        ErrorText(module, call.lineno, text)
        for module, tree, call in _errors()
        for argument in call.args
        if " " in (text := " ".join(_text(argument, _constants(tree)).split()))
    )


def error_codes() -> set[str]:
    """AWS's codes, where an error is made with one: a word in capitals and small letters."""
    words = {_text(argument, {}) for _, _, call in _errors() for argument in call.args}
    return {word for word in words if re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]+)+", word)}


@functools.cache
def all_texts() -> tuple[str, ...]:
    """Every text of the code: some errors are put together before they are raised."""
    nodes = [node for tree in _modules().values() for node in ast.walk(tree)]
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    texts = [node for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in parts]
    return tuple(" ".join(_text(node, {}).split()) for node in texts)


@functools.cache
def _modules() -> Mapping[str, ast.Module]:
    files = [(folder, file) for folder in SOURCES for file in sorted(folder.rglob("*.py")) if file.name not in NOT_OURS]
    return {str(file.relative_to(folder)): ast.parse(file.read_text()) for folder, file in files}


@functools.cache
def _errors() -> tuple[tuple[str, ast.Module, ast.Call], ...]:
    kinds = _kinds(_modules().values()) | MAKERS
    found = []
    for module, tree in _modules().items():
        counted = kinds | {"ValueError"} if Path(module).name in PARSERS else kinds
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        found += [(module, tree, call) for call in calls if _called(call) in counted]
    return tuple(found)


def _kinds(trees: Iterable[ast.Module]) -> frozenset[str]:
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    kinds = set(ROOTS)
    while more := {name for name, its in bases.items() if its & kinds} - kinds:
        kinds |= more
    return frozenset(kinds)


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


@functools.cache
def _constants(tree: ast.Module) -> dict[str, str]:
    """The texts that a module gives names to."""
    return {
        target.id: _text(statement.value, {})
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _text(node: ast.expr, constants: Mapping[str, str]) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return constants.get(name, "")
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_text(left, constants) or "…") + (_text(right, constants) or "…")
    return ""


# The classes of errors


def trees() -> Mapping[str, Sequence[Any]]:
    """The classes of each kind of caller, the base first."""
    for folder in SOURCES:
        sys.path.insert(0, str(folder))
    package = importlib.import_module("polyhost")
    for module in pkgutil.walk_packages(package.__path__, "polyhost."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    roots = {
        "endpoint": ("polyhost.service_errors", "EndpointError"),
        "container": ("polyhost.engine.errors", "EngineError"),
        "handler": ("polyhost_handlers.errors", "HandlerError"),
        "command": ("polyhost.errors", "PolyhostError"),
    }
    return {name: _tree(getattr(importlib.import_module(module), root)) for name, (module, root) in roots.items()}


def _tree(root: Any) -> list[Any]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


def _rows_of(kinds: Iterable[Any]) -> dict[tuple[str, ...], str]:
    """By status and type, or exit code: why, and what to do. A class that says nothing of its own is like its base."""
    rows: dict[tuple[str, ...], str] = {}
    for kind in kinds:
        if advice := vars(kind).get("advice"):
            status = getattr(kind, "status", None)
            key = (str(status), f"`{kind.type}`") if status else (str(kind.exit_code),)
            rows.setdefault(key, advice)
    return rows


def _http_rows() -> dict[tuple[str, ...], str]:
    """Of requests that no application sees, whoever was asked."""
    parsing = importlib.import_module("polyhost.api.parsing")
    return {(str(status), f"`{type_}`"): parsing.Refused.advice for status, type_ in parsing.TYPES.items()}


def _table(rows: Mapping[tuple[str, ...], str], *names: str) -> list[str]:
    heads = [*names, "why, and what to do"]
    lines = [f"| {' | '.join([*key, advice])} |" for key, advice in sorted(rows.items(), key=_number_first)]
    return ["", f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |", *lines, ""]


def _number_first(row: tuple[tuple[str, ...], str]) -> tuple[int, tuple[str, ...]]:
    return int(row[0][0]), row[0]


def _classes() -> list[str]:
    found = trees()
    container = {**_http_rows(), **_rows_of([*found["container"], *found["handler"]])}
    seen = {type_ for _, type_ in [*container, *_rows_of(found["endpoint"])]}
    codes = sorted(f"`{code}`" for code in (error_codes() | _types(found["endpoint"])) if f"`{code}`" not in seen)
    return [
        "## Statuses of an endpoint",
        *_table(_rows_of(found["endpoint"]), "status", "type"),
        f"The control plane and STS also have AWS's codes: {', '.join(codes)}.",
        "",
        "## Statuses of the container's API, and of HTTP itself",
        *_table(container, "status", "type"),
        "## Exit codes",
        *_table({("0",): "It was told to stop, and has stopped.", **_rows_of(found["command"]), **SIGNALS}, "code"),
    ]


def _types(kinds: Iterable[Any]) -> set[str]:
    return {kind.type for kind in kinds}


# The texts


def sections() -> list[Section]:
    return [Section(**entry) for entry in tomllib.loads(CURES.read_text())["section"]]


def filled() -> tuple[list[Section], list[str]]:
    """The sections with their texts, and what is wrong with the file of cures."""
    parts, problems = sections(), []
    every = [text for text in error_texts() if text.is_fixed]
    for text in every:
        home = next((part for part in parts if part.takes(text)), None)
        if home is None:
            problems.append(f"{text.module}:{text.line}: no section of {CURES.name} takes {text.text!r}")
        elif _cure_of(home, text.text) is None and not text.says_what_to_do and text.text not in home.texts:
            home.texts.append(text.text)
    _once(parts, every)
    known = {text.text for text in every} | set(all_texts())
    problems += [
        f"{CURES.name}: no text of the code has {piece!r}"
        for part in parts
        for cure in part.cures
        for piece in cure["texts"]
        if not any(piece in text for text in known)
    ]
    return parts, problems


def _once(parts: Iterable[Section], every: Sequence[ErrorText]) -> None:
    """What several parts of the code say is in the first section that has it, with a cure or without."""
    seen: set[str] = set()
    for part in parts:
        part.texts = [text for text in part.texts if text not in seen]
        seen.update(part.texts, (text.text for text in every if part.takes(text) and _cure_of(part, text.text)))


def _cure_of(section: Section, text: str) -> Mapping[str, Any] | None:
    return next((cure for cure in section.cures if any(piece in text for piece in cure["texts"])), None)


def _part(section: Section, texts: Sequence[str]) -> Iterator[str]:
    yield from ("", f"### {section.title}", "", section.do)
    if section.cures:
        yield from ("", "| it says | do |", "| --- | --- |")
        for cure in section.cures:
            said = [_shortest(piece, texts) for piece in cure["texts"]]
            yield f"| {'<br>'.join(shown(text) for text in dict.fromkeys(said))} | {cure['do']} |"
    if section.texts:
        yield from ("", *(f"* {shown(text)}" for text in section.texts))


def _shortest(piece: str, texts: Sequence[str]) -> str:
    """Of the errors with this piece; where none has it, of all texts of the code."""
    return min((text for text in texts if piece in text), key=len, default="") or min(
        (text for text in all_texts() if piece in text), key=len
    )


def shown(text: str) -> str:
    """As code of Markdown, without what all texts of its part begin with, and cut where it is long."""
    text = text.removeprefix(LOAD).replace("|", "\\|")
    return f"`{textwrap.shorten(text.replace('`', ''), MOST_CHARS, placeholder=' …')}`"


def page() -> str:
    """The part of the page that is made."""
    parts, problems = filled()
    if problems:
        sys.exit("\n".join(problems))
    texts = [text.text for text in error_texts()]
    lines = [*_classes(), "## Texts", "", "`…` stands for what differs."]
    return "\n".join([*lines, *(line for part in parts for line in _part(part, texts))])


def written() -> str:
    """The page as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{page()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/troubleshooting.md")
    if parser.parse_args().write:
        PAGE.write_text(written())
    else:
        print(page())


if __name__ == "__main__":
    main()
