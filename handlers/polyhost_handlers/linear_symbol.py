"""
Reads from an MXNet graph which linear model it computes: its weight, its bias and what follows them.

Shapes alone do not tell a weight of (features, outputs) from its transpose, so the graph's operators decide:
`dot` takes the first, `FullyConnected` the second. What a graph does beyond this is refused by its operator's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

IDENTITY, MARGIN, SIGMOID, SOFTMAX = "identity", "margin", "sigmoid", "softmax"
_LINKS = {
    "LogisticRegressionOutput": SIGMOID,
    "sigmoid": SIGMOID,
    "SoftmaxOutput": SOFTMAX,
    "softmax": SOFTMAX,
    # In a prediction these hand on what they get; only training makes a difference between them.
    "LinearRegressionOutput": IDENTITY,
    "MAERegressionOutput": IDENTITY,
    "SVMOutput": MARGIN,
}
_SAME = ("BlockGrad", "stop_gradient", "identity", "_copy")
_ADDITIONS = ("broadcast_add", "broadcast_plus", "elemwise_add", "_plus", "_Plus")
_SUBTRACTIONS = ("elemwise_sub", "broadcast_sub", "broadcast_minus", "_minus", "_Minus")


class UnknownLayout(ValueError):
    """The graph is not one linear model; the text says what it has instead."""


@dataclass(frozen=True)
class Linear:
    """rows @ weight + bias, then `link`. `weight` is (features, outputs), `bias` (outputs,), both float64."""

    weight: Array
    bias: Array
    # None as long as no output operator has come.
    link: str | None = None
    # The operator of a loss that was put after it.
    loss: str = ""


class _Data: ...


class _Label: ...


@dataclass(frozen=True)
class _Parameter:
    name: str
    array: Array


def read_linear(symbol: bytes, arrays: Mapping[str, Array]) -> Linear:
    """The linear model that a symbol file and its parameters make. Raises UnknownLayout."""
    try:
        graph = json.loads(symbol)
        nodes, head = graph["nodes"], graph["heads"][0][0]
        values: list[Any] = []
        for node in nodes:
            inputs = [values[_index(item, len(values))] for item in node["inputs"]]
            values.append(_value(node, inputs, arrays))
        value = values[_index([head], len(values))]
    except UnknownLayout:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnknownLayout("is not an MXNet graph") from error
    if not isinstance(value, Linear):
        raise UnknownLayout("does not multiply its data by a weight")
    return value


def _index(item: Any, count: int) -> int:
    """The number of the node that an edge comes from; only earlier ones are there yet."""
    number = int(item[0])
    if not 0 <= number < count:
        raise UnknownLayout("has a node that comes before its inputs")
    return number


def _value(node: Mapping[str, Any], inputs: list[Any], arrays: Mapping[str, Array]) -> Any:
    """What one node of the graph is."""
    operator, name = str(node["op"]), str(node["name"])
    attributes = {**node.get("param", {}), **node.get("attr", {}), **node.get("attrs", {})}
    if operator == "null":
        return _variable(name, attributes, arrays)
    first, *others = inputs or [None]
    if operator == "dot" and isinstance(first, _Data):
        weight = _matrix(others, operator)
        if _is_true(attributes.get("transpose_a")):
            raise UnknownLayout("transposes its data")
        weight = weight.T if _is_true(attributes.get("transpose_b")) else weight
        return Linear(weight, np.zeros(weight.shape[1]))
    if operator == "FullyConnected" and isinstance(first, _Data):
        weight = _matrix(others[:1], operator).T
        linear = Linear(weight, np.zeros(weight.shape[1]))
        return _plus(linear, others[1]) if others[1:] else linear
    if operator in _ADDITIONS and isinstance(first, Linear) and first.link is None and not first.loss and others:
        return _plus(first, others[0])
    if operator in _SAME and isinstance(first, Linear):
        return first
    if operator in _LINKS and isinstance(first, Linear) and first.link is None and not first.loss:
        return replace(first, link=_LINKS[operator])
    return _loss(operator, inputs)


def _variable(name: str, attributes: Mapping[str, Any], arrays: Mapping[str, Array]) -> Any:
    for stored in (f"arg:{name}", f"aux:{name}", name):
        if stored in arrays:
            _check_declared(name, attributes.get("__shape__"), arrays[stored])
            return _Parameter(name, arrays[stored].astype(np.float64))
    if name.endswith("label"):
        return _Label()
    if name == "data":
        return _Data()
    raise UnknownLayout(f"has an input {name} that is neither its data nor among its parameters")


def _check_declared(name: str, declared: Any, array: Array) -> None:
    """Where the graph says what shape a parameter has, the file must agree; 0 stands for any size."""
    if declared is None:
        return
    shape = [int(size) for size in re.findall(r"\d+", str(declared)[:200])]
    if len(shape) != array.ndim or any(size not in (0, real) for size, real in zip(shape, array.shape, strict=True)):
        raise UnknownLayout(f"says that {name} has the shape {declared}, its parameters have {array.shape}")


def _matrix(inputs: list[Any], operator: str) -> Array:
    if len(inputs) != 1 or not isinstance(inputs[0], _Parameter):
        raise UnknownLayout(f"has a {operator} without a weight of its own")
    array = inputs[0].array
    if array.ndim != 2 or not array.size:
        raise UnknownLayout(f"has a {operator} with a weight of shape {array.shape}, which is no matrix")
    return array


def _plus(linear: Linear, bias: Any) -> Linear:
    if not isinstance(bias, _Parameter):
        raise UnknownLayout("adds something that is no parameter")
    outputs = linear.weight.shape[1]
    if bias.array.shape not in ((1,), (1, 1), (outputs,), (1, outputs)):
        raise UnknownLayout(f"adds a bias of shape {bias.array.shape} to {outputs} outputs")
    return replace(linear, bias=linear.bias + bias.array.reshape(-1))


def _loss(operator: str, inputs: list[Any]) -> Linear:
    """
    A loss: something subtracts the label from the prediction, more operators follow. The prediction is what it got.

    Any other operator changes the prediction in a way that is not known here.
    """
    linears = [value for value in inputs if isinstance(value, Linear)]
    compares = operator in _SUBTRACTIONS and len(inputs) == 2 and any(isinstance(value, _Label) for value in inputs)
    if linears and all(value is linears[0] for value in linears) and (compares or linears[0].loss):
        return replace(linears[0], loss=linears[0].loss or operator)
    raise UnknownLayout(f"has the operator {operator}, which a linear model does not have at that place")


def _is_true(value: Any) -> bool:
    return str(value) in ("True", "true", "1")
