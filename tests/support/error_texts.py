"""All that our code says to a client or an operator when something is wrong, read from the code itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# The roots of the trees of errors that reach somebody; what derives from them is found.
ROOTS = frozenset(
    {"PolyhostError", "EngineError", "EndpointError", "HostingError", "HandlerError", "Unusable", "BadToken"}
)
# Functions that make one of them, and what a worker answers.
MAKERS = frozenset({"invalid", "too_large", "kind", "_missing", "_failed", "_invalid", "_incomplete", "Failed"})
# Of these modules ValueErrors become a setting's error as they are.
PARSERS = frozenset({"config.py", "emf.py"})
# Fakes that the package brings for tests.
NOT_OURS = frozenset({"testing.py"})


@dataclass(frozen=True)
class ErrorText:
    """`…` stands for what is only known when it happens."""

    place: str
    text: str

    @property
    def longest_piece(self) -> str:
        return max(self.text.split("…"), key=len).strip()


def error_texts(folders: Iterable[Path]) -> Iterator[ErrorText]:
    """All that has words: what only passes on another's text has none."""
    for file, tree, call in _errors(folders):
        constants = _constants(tree)
        for argument in call.args:
            text = _text(argument, constants)
            if text and " " in text:
                yield ErrorText(f"{file.name}:{call.lineno}", text)


def error_codes(folders: Iterable[Path]) -> set[str]:
    """AWS's codes, where an error is made with one: a word in capitals and small letters."""
    words = {_text(argument, {}) for _, _, call in _errors(folders) for argument in call.args}
    return {word for word in words if re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]+)+", word)}


def _errors(folders: Iterable[Path]) -> Iterator[tuple[Path, ast.Module, ast.Call]]:
    files = [file for folder in folders for file in sorted(folder.rglob("*.py")) if file.name not in NOT_OURS]
    trees = {file: ast.parse(file.read_text()) for file in files}
    kinds = _kinds(trees.values()) | MAKERS
    for file, tree in trees.items():
        counted = kinds | {"ValueError"} if file.name in PARSERS else kinds
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node) in counted:
                yield file, tree, node


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
