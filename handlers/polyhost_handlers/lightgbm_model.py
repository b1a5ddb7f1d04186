"""
LightGBM's model files: its text, and the JSON of `Booster.dump_model`, which becomes that text again.

LightGBM believes what a file says: a node that names a child, a feature or a category that is not there is followed
into memory that is not the model's, or for ever. So every tree is looked through before LightGBM gets it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_MISSING_TYPES = {"None": 0, "Zero": 4, "NaN": 8}
_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_END = "\nend of trees"
_PANDAS = re.compile(r"^pandas_categorical:(.*)$", re.MULTILINE)
_CLASSES = re.compile(r"\bnum_class:(\d+)")
# The arrays of a tree that has branches, by how long each is: one for each inner node, or one for each leaf.
_OF_NODES = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
_MAX_DEPTH = 900


class BrokenModel(Exception):
    """The text says what is wrong."""


@dataclass(frozen=True)
class Model:
    """`text` is what LightGBM loads. `categories`: of the columns of a DataFrame that had any, in their order."""

    text: str
    names: tuple[str, ...]
    categorical: tuple[bool, ...]
    categories: tuple[list[Any], ...]


def read(content: str) -> Model:
    """Raises BrokenModel."""
    text = content if content.startswith("tree\n") else _text_of(content)
    head, *trees = re.split(r"^Tree=\d+\n", text.partition(_END)[0] + "\n", flags=re.MULTILINE)
    said = _values(head)
    features = _count(said, "max_feature_idx") + 1
    names, infos = said.get("feature_names", "").split(" "), said.get("feature_infos", "").split(" ")
    if len(names) != features or len(infos) != features:
        raise BrokenModel(f"it says {features} features and names {len(names)}, {len(infos)} of them with their values")
    _check_classes(said, len(trees))
    for number, tree in enumerate(trees):
        _check_tree(f"tree {number}", _values(tree), features)
    categories = _categories(text)
    categorical = tuple(not info.startswith("[") and info != "none" for info in infos)
    if categories and sum(categorical) != len(categories):
        raise BrokenModel(f"{sum(categorical)} of its columns have categories, and it names those of {len(categories)}")
    # LightGBM would jump to where it is told that each tree begins; without this line it reads one after the other.
    text = re.sub(r"^tree_sizes=.*\n", "", text, count=1, flags=re.MULTILINE)
    return Model(text, tuple(names), categorical, categories)


def _values(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _count(values: Mapping[str, str], name: str, otherwise: str = "") -> int:
    text = values.get(name, otherwise)
    if not text.isdigit() or len(text) > 9:
        raise BrokenModel(f"its {name} is '{text[:40]}'")
    return int(text)


def _check_classes(said: Mapping[str, str], trees: int) -> None:
    classes, each = _count(said, "num_class"), _count(said, "num_tree_per_iteration")
    objective = _CLASSES.search(said.get("objective", ""))
    if classes != each or not classes or trees % each or (objective and int(objective[1]) != classes):
        raise BrokenModel(f"its {trees} trees are not those of {classes} classes")


def _check_tree(where: str, tree: Mapping[str, str], features: int) -> None:
    leaves = _count(tree, "num_leaves")
    if not leaves or len(tree.get("leaf_value", "").split()) != leaves:
        raise BrokenModel(f"{where} has not the {leaves} leaves that it says")
    if tree.get("is_linear") == "1":
        named = _integers(where, tree, "leaf_features")
        if named.size and not 0 <= named.min() <= named.max() < features:
            raise BrokenModel(f"{where} asks for a feature that is not there")
    if leaves == 1:
        return
    arrays = {name: tree.get(name, "").split() for name in _OF_NODES}
    if any(len(values) != leaves - 1 for values in arrays.values()):
        raise BrokenModel(f"{where} has not the {leaves - 1} branches that its leaves need")
    split = _integers(where, tree, "split_feature")
    if not 0 <= split.min() <= split.max() < features:
        raise BrokenModel(f"{where} asks for a feature that is not there")
    parents = np.arange(leaves - 1)
    for side in ("left_child", "right_child"):
        children = _integers(where, tree, side)
        # A child was made after its parent, so a way down never comes back.
        is_right = np.where(children >= 0, (children > parents) & (children < leaves - 1), ~children < leaves)
        if not is_right.all():
            raise BrokenModel(f"a branch of {where} leads nowhere")
    _check_categories(where, tree)


def _check_categories(where: str, tree: Mapping[str, str]) -> None:
    is_categorical = (_integers(where, tree, "decision_type") & _CATEGORICAL).astype(bool)
    count = _count(tree, "num_cat", "0")
    if not count:
        if is_categorical.any():
            raise BrokenModel(f"{where} asks for categories and has none")
        return
    bounds, words = _integers(where, tree, "cat_boundaries"), tree.get("cat_threshold", "").split()
    if len(bounds) != count + 1 or bounds[0] != 0 or (np.diff(bounds) < 0).any() or bounds[-1] != len(words):
        raise BrokenModel(f"the categories of {where} are not where it says")
    numbers = np.array(tree["threshold"].split(), dtype=float)[is_categorical]
    if numbers.size and not (np.isfinite(numbers).all() and 0 <= numbers.min() <= numbers.max() < count):
        raise BrokenModel(f"{where} asks for categories that are not there")


def _integers(where: str, tree: Mapping[str, str], name: str) -> np.ndarray[Any, Any]:
    try:
        return np.array(tree.get(name, "").split(), dtype=np.int32)
    except (ValueError, OverflowError) as error:
        raise BrokenModel(f"{name} of {where} are not whole numbers") from error


def _categories(text: str) -> tuple[list[Any], ...]:
    found = _PANDAS.findall(text)
    try:
        lists = json.loads(found[-1]) if found else None
    except (ValueError, RecursionError) as error:
        raise BrokenModel("its pandas_categorical is not JSON") from error
    if lists is None:
        return ()
    if not isinstance(lists, list) or not all(isinstance(values, list) for values in lists):
        raise BrokenModel("its pandas_categorical is not a list of lists")
    return tuple(lists)


# JSON


def _text_of(content: str) -> str:
    """The text that LightGBM loads, of what it dumps as JSON and does not load itself."""
    try:
        document = json.loads(content)
        return "\n".join(_lines(document))
    except RecursionError as error:
        raise BrokenModel("its trees are too deep") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BrokenModel(f"it is not what dump_model writes: {type(error).__name__}: {error}") from error


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    names, infos = document["feature_names"], document["feature_infos"]
    yield from ("tree", f"version={document['version']}")
    for name in ("num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective"):
        if name in document:
            yield f"{name}={_plain(document[name])}"
    if document.get("average_output"):
        yield "average_output"
    yield f"feature_names={' '.join(map(_plain, names))}"
    yield f"feature_infos={' '.join(_info(infos.get(name)) for name in names)}"
    for number, tree in enumerate(document["tree_info"]):
        yield from ("", f"Tree={number}", *_tree_lines(tree), "")
    yield from ("end of trees", "", f"pandas_categorical:{json.dumps(document.get('pandas_categorical'))}", "")


def _plain(value: Any) -> str:
    """A name or a number, which must not begin a line of its own."""
    text = str(value)
    if "\n" in text or "\r" in text:
        raise BrokenModel("a name in it has more than one line")
    return text


def _info(info: Mapping[str, Any] | None) -> str:
    """A feature's categories, or its least and greatest value; "none" where no tree has used it."""
    if info is None:
        return "none"
    values = info.get("values") or ()
    least, greatest = float(info["min_value"]), float(info["max_value"])
    return ":".join(str(int(value)) for value in values) if values else f"[{least!r}:{greatest!r}]"


def _tree_lines(tree: Mapping[str, Any]) -> Iterator[str]:
    leaves = int(tree["num_leaves"])
    nodes: dict[int, Mapping[str, Any]] = {}
    values: dict[int, float] = {}
    _walk(tree["tree_structure"], nodes, values, depth=0)
    if sorted(nodes) != list(range(leaves - 1)) or sorted(values) != list(range(leaves)):
        raise BrokenModel("a tree of it has not the leaves that it says")
    ordered = [nodes[place] for place in range(leaves - 1)]
    bounds, words, thresholds = [0], [], []
    for node in ordered:
        if node["decision_type"] == "==":
            thresholds.append(float(len(bounds) - 1))
            words += _bits([int(value) for value in str(node["threshold"]).split("||")])
            bounds.append(len(words))
        else:
            thresholds.append(float(node["threshold"]))
    yield from (f"num_leaves={leaves}", f"num_cat={len(bounds) - 1}")
    yield f"split_feature={_joined(int(node['split_feature']) for node in ordered)}"
    yield f"threshold={_joined(map(repr, thresholds))}"
    yield f"decision_type={_joined(map(_decision, ordered))}"
    yield f"left_child={_joined(_place(node['left_child']) for node in ordered)}"
    yield f"right_child={_joined(_place(node['right_child']) for node in ordered)}"
    yield f"leaf_value={_joined(repr(values[place]) for place in range(leaves))}"
    if len(bounds) > 1:
        yield from (f"cat_boundaries={_joined(bounds)}", f"cat_threshold={_joined(words)}")
    yield from ("is_linear=0", f"shrinkage={float(tree['shrinkage'])!r}")


def _walk(node: Mapping[str, Any], nodes: dict[int, Mapping[str, Any]], values: dict[int, float], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise BrokenModel("its trees are too deep")
    if "split_index" not in node:
        if "leaf_coeff" in node:
            raise BrokenModel("it has linear trees, whose JSON cannot be read: save it by save_model")
        values[int(node.get("leaf_index", 0))] = float(node["leaf_value"])
        return
    nodes[int(node["split_index"])] = node
    for side in ("left_child", "right_child"):
        _walk(node[side], nodes, values, depth + 1)


def _place(node: Mapping[str, Any]) -> int:
    return int(node["split_index"]) if "split_index" in node else ~int(node["leaf_index"])


def _decision(node: Mapping[str, Any]) -> int:
    is_categorical = _CATEGORICAL if node["decision_type"] == "==" else 0
    return is_categorical + (_DEFAULT_LEFT if node["default_left"] else 0) + _MISSING_TYPES[node["missing_type"]]


def _bits(categories: list[int]) -> list[int]:
    """A set of categories, 32 to a word."""
    if not all(0 <= value < 2**20 for value in categories):
        raise BrokenModel("it has a category that LightGBM cannot have written")
    words = [0] * (max(categories) // 32 + 1)
    for value in categories:
        words[value // 32] |= 1 << value % 32
    return words


def _joined(values: Any) -> str:
    return " ".join(map(str, values))
