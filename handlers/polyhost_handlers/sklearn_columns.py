"""
What a scikit-learn model wants in each of its columns, read from the fitted estimator.

Encoders know their categories, vectorizers take texts, all that calculates takes numbers; pipelines, column
transformers and searches hand their rows on to others. What is not scikit-learn's own says nothing, and neither does
a function. Reads attributes alone, so that it works for objects of any release, and imports nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyhost_handlers.tables import (
    AsFloat,
    AsItLooks,
    BeforeFunction,
    Choice,
    Date,
    Kind,
    Missing,
    Number,
    Schema,
    Text,
    TextOf,
)

_VECTORIZERS = ("CountVectorizer", "TfidfVectorizer", "HashingVectorizer")
_TAKE_RECORDS = ("DictVectorizer", "FeatureHasher")
# They look at the values of one column alone, as texts, numbers or whatever they were trained on.
_LABELS = ("LabelEncoder", "LabelBinarizer")
# They take any value and hand it on, or do not look at it at all.
_TAKE_ANYTHING = ("FunctionTransformer", "DummyClassifier", "DummyRegressor")
_MAX_DEPTH = 20


@dataclass(frozen=True)
class Wanted:
    """How a model takes its input: as a table (a DataFrame if it finds columns by name), as texts, as records."""

    schema: Schema
    is_texts: bool = False
    is_records: bool = False
    # The values of one column, not a table of it.
    is_column: bool = False
    needs_frame: bool = False


def wanted_by(estimator: Any) -> Wanted:
    """What `estimator` was trained on, as far as it tells."""
    first = _first_step(estimator)
    name = type(first).__name__
    if _takes_texts(estimator):
        return Wanted(Schema(width=1), is_texts=True)
    if name in _TAKE_RECORDS and getattr(first, "input_type", "dict") == "dict":
        return Wanted(Schema(), is_records=True)
    if name in _LABELS:
        return Wanted(Schema(width=1, kinds=(_choice_of(first.classes_),)), is_column=True)
    width = getattr(estimator, "n_features_in_", None)
    names = getattr(estimator, "feature_names_in_", None)
    names = None if names is None else tuple(str(name) for name in names)
    width = len(names) if names is not None else None if width is None else int(width)
    kinds = _kinds(estimator, width, names or (), 0)
    if kinds is None:
        is_told = _is_sklearns(first) and type(first).__name__ not in _TAKE_ANYTHING
        return Wanted(Schema(width, names, otherwise=Number() if is_told else AsFloat()))
    if names is None:
        kinds = _of_one_array(kinds)
    optional = _unused(estimator, names) if names else frozenset()
    is_numbers = all(isinstance(kind, Number) for kind in kinds)
    schema = Schema(len(kinds), names, None if is_numbers else tuple(kinds), optional)
    return Wanted(schema, needs_frame=names is not None and _looks_at_names(estimator))


def _takes_texts(estimator: Any, depth: int = 0) -> bool:
    """A vectorizer, behind whatever steps that say nothing of their input; or several side by side."""
    if depth > _MAX_DEPTH:
        return False
    if type(estimator).__name__ in _VECTORIZERS:
        return True
    union = getattr(estimator, "transformer_list", None)
    if isinstance(union, list) and union:
        parts = [(part, _takes_texts(part, depth + 1)) for _, part in union if not isinstance(part, str)]
        return any(takes for _, takes in parts) and all(takes or _takes_anything(part) for part, takes in parts)
    for step in _steps(estimator):
        if _takes_texts(step, depth + 1):
            return True
        if _is_sklearns(step) and type(step).__name__ not in _TAKE_ANYTHING:
            return False
    inner = _inner(estimator)
    return inner is not None and _takes_texts(inner, depth + 1)


def _takes_anything(part: Any) -> bool:
    first = _first_step(part)
    return not _is_sklearns(first) or type(first).__name__ in _TAKE_ANYTHING


def _first_step(estimator: Any, depth: int = 0) -> Any:
    """The one that is given the rows: of a pipeline the first step, of a search what it has found."""
    steps = _steps(estimator)
    inner = steps[0] if steps else _inner(estimator)
    return estimator if inner is None or depth > _MAX_DEPTH else _first_step(inner, depth + 1)


def _steps(estimator: Any) -> list[Any]:
    steps = getattr(estimator, "steps", None)
    if not isinstance(steps, list):
        return []
    return [step[1] for step in steps if step[1] is not None and step[1] != "passthrough"]


def _inner(estimator: Any) -> Any:
    """What an estimator of estimators asks; None if it is none."""
    if not _is_sklearns(estimator) or hasattr(estimator, "transformers_") or hasattr(estimator, "transformer_list"):
        return None
    calibrated = getattr(estimator, "calibrated_classifiers_", None)
    many = getattr(estimator, "estimators_", None)
    found = [
        getattr(estimator, "best_estimator_", None),
        getattr(estimator, "regressor_", None),
        getattr(calibrated[0], "estimator", None) if isinstance(calibrated, list) and calibrated else None,
        many[0] if isinstance(many, list) and many else None,
        # In an ensemble this is the untrained estimator that all the others are copies of.
        getattr(estimator, "estimator_", None),
        getattr(estimator, "estimator", None) if hasattr(estimator, "n_features_in_") else None,
    ]
    return next((inner for inner in found if hasattr(inner, "get_params")), None)


def _members(estimator: Any) -> list[Any]:
    """The estimators of a vote or a stack, which all get all columns; [] for any other estimator."""
    if not _is_sklearns(estimator) or not isinstance(getattr(estimator, "estimators", None), list):
        return []
    members = getattr(estimator, "estimators_", None)
    return members if isinstance(members, list) else []


def _is_sklearns(estimator: Any) -> bool:
    return type(estimator).__module__.partition(".")[0] == "sklearn"


def _kinds(estimator: Any, width: int | None, names: Sequence[str], depth: int) -> list[Kind] | None:
    """The kind of each column; None where they are not counted."""
    if depth > _MAX_DEPTH:
        return None
    categories = getattr(estimator, "categories_", None)
    if _is_sklearns(estimator) and isinstance(categories, list):
        return [_choice_of(values) for values in categories]
    width = width if width is not None else getattr(estimator, "n_features_in_", None)
    if width is None:
        # Before release 0.24 a pipeline did not count: its first step may.
        return _kinds(steps[0], None, names, depth + 1) if (steps := _steps(estimator)) else None
    return _kinds_of_parts(estimator, width, names, depth)


def _kinds_of_parts(estimator: Any, width: int, names: Sequence[str], depth: int) -> list[Kind] | None:
    """What the parts say of which an estimator is made; else what can be said of any estimator."""
    if steps := _steps(estimator):
        return _kinds_of_steps(steps, width, names, depth)
    if hasattr(estimator, "transformers_"):
        return _kinds_of_columns(estimator, width, names, depth)
    if isinstance(getattr(estimator, "transformer_list", None), list):
        parts = [part for _, part in estimator.transformer_list if not isinstance(part, str)]
        return _merged([_kinds(part, width, names, depth + 1) or [] for part in parts], width)
    preprocessor = getattr(estimator, "_preprocessor", None)
    if hasattr(preprocessor, "transformers_"):  # histogram gradient boosting, of columns with categories
        return _kinds_of_columns(preprocessor, width, names, depth)
    if members := _members(estimator):
        return _merged([_kinds(member, width, names, depth + 1) or [] for member in members], width)
    inner = _inner(estimator)
    if inner is not None and getattr(inner, "n_features_in_", width) == width:
        return _kinds(inner, width, names, depth + 1)
    if not _is_sklearns(estimator) or type(estimator).__name__ in _TAKE_ANYTHING or _fills_objects(estimator):
        return [_unsaid(estimator, names)] * width
    return [Number()] * width


def _choice_of(values: Any) -> Kind:
    array = np.asarray(values)
    if array.dtype.kind == "M":
        return Date(array.dtype)
    return Choice(array.tolist(), array.dtype)


def _unsaid(estimator: Any, names: Sequence[str]) -> Kind:
    """
    The kind of what an estimator does not tell.

    An array was most likely one of float64. Of a DataFrame's columns a function that calculates gives the same for
    float64 as for whole numbers, and a class that is not scikit-learn's may do anything.
    """
    is_kept = _fills_objects(estimator) or _is_identity(estimator) or (names and not _is_sklearns(estimator))
    return AsItLooks() if is_kept else AsFloat()


def _is_identity(estimator: Any) -> bool:
    """Also what a fitted ColumnTransformer has in place of `passthrough`."""
    return type(estimator).__name__ == "FunctionTransformer" and getattr(estimator, "func", None) is None


def _fills_objects(estimator: Any) -> bool:
    """An imputer of columns that were not all numbers."""
    kind = getattr(getattr(estimator, "_fit_dtype", None), "kind", "f")
    return type(estimator).__name__ == "SimpleImputer" and kind in "OUS"


def _kinds_of_steps(steps: Sequence[Any], width: int, names: Sequence[str], depth: int) -> list[Kind] | None:
    """The first step's; where it only passes a column on, the next step's word on it counts."""
    kinds = _kinds(steps[0], width, names, depth + 1)
    passed = _passed_on(steps[0], width, names)
    following = _kinds_of_steps(steps[1:], width, names, depth + 1) if passed and steps[1:] else None
    if kinds is None or following is None or len(following) != len(passed):
        following, passed = [], []
    kinds = list(kinds) if kinds is not None else None
    for place, kind in zip(passed, following, strict=True):
        if kinds is not None and isinstance(kinds[place], AsItLooks):
            kinds[place] = _before(kinds[place], kind, _fills_objects(steps[0]))
    if kinds is not None and any(_has_learned_texts(step) for step in steps[1:]):
        # A function before may write numbers as texts: `2` is to be no `2.0`.
        kinds = [AsItLooks() if isinstance(kind, AsFloat) else kind for kind in kinds]
    if kinds is None or not _fills_objects(steps[0]):
        return kinds
    # What the imputer looks for is what a missing field must be.
    missing = steps[0].missing_values
    return [Missing(kind, missing) for kind in kinds] if missing is None or missing == "" else kinds


def _before(kind: Kind, following: Kind, is_filled: bool) -> Kind:
    """The kind of a column of which a step says nothing itself, as `kind` tells, and the step after it `following`."""
    if _is_text(following):
        return BeforeFunction(following) if isinstance(kind, AsFloat) else following
    return following if is_filled or isinstance(following, AsFloat) else kind


def _has_learned_texts(estimator: Any, depth: int = 0) -> bool:
    """Whether texts are looked for anywhere in it."""
    if depth > _MAX_DEPTH:
        return False
    categories = getattr(estimator, "categories_", None)
    if type(estimator).__name__ in _VECTORIZERS:
        return True
    if isinstance(categories, list) and any(np.asarray(values).dtype.kind in "OSU" for values in categories):
        return True
    named = [*(getattr(estimator, "transformers_", None) or []), *(getattr(estimator, "transformer_list", None) or [])]
    parts = [*_steps(estimator), *_members(estimator), *(part[1] for part in named), _inner(estimator)]
    return any(_has_learned_texts(part, depth + 1) for part in parts if part is not None and not isinstance(part, str))


def _of_one_array(kinds: list[Kind]) -> list[Kind]:
    """The columns of an array are of one type: where an encoder has learned whole numbers, all columns were these."""
    if not any(isinstance(kind, Choice) and kind.is_whole for kind in kinds):
        return kinds
    return [AsItLooks() if isinstance(kind, AsFloat) else kind for kind in kinds]


def _is_text(kind: Kind) -> bool:
    """Whether a function or a passage before it that says nothing is to be given text, whatever that looks like."""
    if isinstance(kind, (Missing, TextOf)):
        return _is_text(kind.kind)
    return isinstance(kind, Text) or (isinstance(kind, Choice) and kind.may_look_like_numbers)


def _passed_on(step: Any, width: int, names: Sequence[str]) -> list[int]:
    """From which column each one comes that a step hands on as it is, or may; [] where it does something else."""
    if type(step).__name__ == "FunctionTransformer" or _fills_objects(step):
        return list(range(width))
    if not hasattr(step, "transformers_"):
        return []
    places: list[int] = []
    for part, columns, _ in _parts(step, width, names):
        if part != "passthrough" and type(part).__name__ not in ("FunctionTransformer", "SimpleImputer"):
            return []
        places += columns
    return places


def _kinds_of_columns(transformer: Any, width: int, names: Sequence[str], depth: int) -> list[Kind]:
    wishes: list[list[Kind | None]] = []
    for part, places, is_one in _parts(transformer, width, names):
        wish: list[Kind | None] = [None] * width
        if is_one and _takes_texts(part):
            told: Sequence[Kind] = [Text()] * len(places)
        elif isinstance(part, str):
            told = [AsItLooks()] * len(places)
        else:
            inner_names = [names[place] for place in places] if names else ()
            told = _kinds(part, len(places), inner_names, depth + 1) or [AsItLooks()] * len(places)
        for place, kind in zip(places, told, strict=False):
            wish[place] = kind
        wishes.append(wish)
    return _merged(wishes, width)


def _parts(transformer: Any, width: int, names: Sequence[str]) -> Iterable[tuple[Any, list[int], bool]]:
    """The transformers of a ColumnTransformer with the columns of each, and whether it is given one by itself."""
    for _, part, columns in transformer.transformers_:
        if isinstance(part, str) and part == "drop":
            continue
        places = _places(columns, width, names)
        if places:
            yield part, places, isinstance(columns, (str, int, np.integer))


def _places(columns: Any, width: int, names: Sequence[str]) -> list[int]:
    """Columns by name, number, slice or mask as numbers; none where they cannot be told."""
    by_name = {name: place for place, name in enumerate(names)}
    if isinstance(columns, slice) and not isinstance(columns.start, str) and not isinstance(columns.stop, str):
        return list(range(width))[columns]
    if isinstance(columns, slice):
        return list(range(width))[by_name.get(columns.start, 0) : by_name.get(columns.stop, width - 1) + 1]
    if isinstance(columns, (str, int, np.integer)):
        columns = [columns]
    if callable(columns):
        return []
    columns = list(columns)
    if columns and all(isinstance(column, (bool, np.bool_)) for column in columns):
        return [place for place, is_taken in enumerate(columns) if is_taken and place < width]
    places = [by_name.get(column, column) for column in columns]
    return [int(place) % width for place in places if not isinstance(place, str) and -width <= int(place) < width]


def _merged(wishes: Sequence[Sequence[Kind | None]], width: int) -> list[Kind]:
    """One column may go to several transformers: what one has learned wins over text, text over numbers."""
    order = (TextOf, Choice, Date, Missing, Text, BeforeFunction, Number, AsFloat, AsItLooks)
    merged: list[Kind] = []
    for place in range(width):
        kinds = [wish[place] for wish in wishes if place < len(wish) and wish[place] is not None]
        found = next((kind for wanted in order for kind in kinds if isinstance(kind, wanted)), None)
        if isinstance(found, (Choice, Missing)) and any(isinstance(kind, Text) for kind in kinds):
            found = TextOf(found)
        merged.append(AsItLooks() if found is None else found)
    return merged


def _unused(estimator: Any, names: Sequence[str], depth: int = 0) -> frozenset[str]:
    """The columns that each ColumnTransformer drops: scikit-learn does not ask for them either."""
    steps, members = _steps(estimator), _members(estimator)
    parts = steps[:1] or members or [inner for inner in [_inner(estimator)] if inner is not None]
    if parts and depth <= _MAX_DEPTH:
        return frozenset.intersection(*(_unused(part, names, depth + 1) for part in parts))
    first = estimator
    if not hasattr(first, "transformers_") or any(callable(columns) for _, _, columns in first.transformers_):
        return frozenset()
    used = {place for _, places, _ in _parts(first, len(names), names) for place in places}
    return frozenset(name for place, name in enumerate(names) if place not in used)


def _looks_at_names(estimator: Any, depth: int = 0) -> bool:
    """Whether it may ask for columns by their names, so that it must be given a DataFrame."""
    if depth > _MAX_DEPTH or not _is_sklearns(estimator) or type(estimator).__name__ in _TAKE_ANYTHING:
        return True
    if hasattr(estimator, "transformers_"):
        return True
    steps = _steps(estimator)
    if steps:
        return _looks_at_names(steps[0], depth + 1)
    if isinstance(getattr(estimator, "transformer_list", None), list):
        return any(_looks_at_names(part, depth + 1) for _, part in estimator.transformer_list)
    inner = _inner(estimator)
    parts = _members(estimator) or ([] if inner is None else [inner])
    return any(_looks_at_names(part, depth + 1) for part in parts)
