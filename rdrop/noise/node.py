"""Nodes: frozen dataclasses as pytrees, checked when a user makes one.

JAX rebuilds pytrees around values that are not rates: gradients, axes of `vmap`,
shardings, placeholders. Such a copy is made without `__init__`, so it is not checked.
"""

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import numpy as np
from flax import serialization

from rdrop.advice import reject_unknown
from rdrop.noise.rates import ScheduledRate, Shape

NodeT = TypeVar("NodeT", bound="Node")


def one_of(*allowed: str, other: tuple[type, ...] = ()) -> dict[str, Any]:
    """Returns the metadata of a dataclass field that takes one of a few static words.

    Args:
        allowed: the words.
        other: types of the values that the field takes in place of a word.
    """
    return {"allowed": allowed, "other": other}


@dataclasses.dataclass(frozen=True)
class Node:
    """Base of frozen dataclasses whose numbers are leaves and whose words are static.

    A subclass is a pytree. Functions among its numbers are schedules.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        unflatten = functools.partial(_unflatten, cls)
        jax.tree_util.register_pytree_with_keys(
            cls, _flatten_with_keys, unflatten, _flatten
        )
        serialization.register_serialization_state(cls, _to_state, _from_state)

    def __new__(cls, *values, **named):
        """Rejects unknown arguments by name; sets nothing."""
        known = cls.__dataclass_fields__
        reject_unknown(cls.__name__, [n for n in named if n not in known], known)
        return super().__new__(cls)

    def __post_init__(self):
        _check_options(self)
        for name, value in self.children().items():
            if callable(value):
                object.__setattr__(self, name, ScheduledRate(value))

    def children(self) -> dict[str, Any]:
        """Returns the fields that are not words, by name, as JAX sees them."""
        fields = type(self).__dataclass_fields__
        return {
            name: value
            for name, value in vars(self).items()
            if not (isinstance(value, str) and "allowed" in fields[name].metadata)
        }

    def replace(self: NodeT, **changes) -> NodeT:
        """Returns a copy with other values in some fields."""
        return dataclasses.replace(self, **changes)

    def at(self: NodeT, step) -> NodeT:
        """Evaluates every schedule at a training step, int or int32[]."""
        changes = {
            name: value.at(step) if isinstance(value, Node) else value.function(step)
            for name, value in self.children().items()
            if isinstance(value, (Node, ScheduledRate))
        }
        return self.replace(**changes)


def check(node: Node, shape: Shape) -> None:
    """Raises if a rate or another number of a noise does not fit the mask's axes.

    Args:
        node: a noise, or a part of one.
        shape: (B, G, U), or (R, G, U) of a mask on weights.

    Raises:
        ValueError: a number is missing, or does not broadcast to `shape`.
    """
    for name, value in node.children().items():
        if isinstance(value, Node):
            check(value, shape)
        elif value is None:
            raise ValueError(
                f"`{name}` must be a number, an array or a schedule, got None."
            )
        elif not _broadcasts(getattr(value, "shape", ()), shape):
            raise ValueError(
                f"`{name}` must broadcast to the mask's axes {shape}, got shape "
                f"{value.shape}."
            )


def _flatten(node: Node):
    children = node.children()
    words = tuple(item for item in vars(node).items() if item[0] not in children)
    return tuple(children.values()), (tuple(children), words)


def _flatten_with_keys(node: Node):
    values, static = _flatten(node)
    keys = map(jax.tree_util.GetAttrKey, static[0])
    return tuple(zip(keys, values, strict=True)), static


def _unflatten(kind: type[Node], static, values) -> Node:
    names, words = static
    node = object.__new__(kind)
    vars(node).update(zip(names, values, strict=True), **dict(words))
    return node


def _to_state(node: Node) -> dict[str, Any]:
    """The numbers of a node, as flax's serialisation has them."""
    children = node.children().items()
    return {name: serialization.to_state_dict(value) for name, value in children}


def _from_state(node: Node, state: dict[str, Any]) -> Node:
    children = node.children().items()
    return node.replace(
        **{
            name: serialization.from_state_dict(value, state[name], name)
            for name, value in children
        }
    )


def _check_options(node: Node) -> None:
    for field in dataclasses.fields(node):
        if not (allowed := field.metadata.get("allowed")):
            continue
        value, other = getattr(node, field.name), field.metadata["other"]
        if isinstance(value, str) and value in allowed:
            continue
        if not isinstance(value, other):
            words = [f'"{word}"' for word in allowed]
            words += [f"a {each.__name__}" for each in other]
            raise ValueError(
                f"`{field.name}` must be {' or '.join(words)}, got {value!r}."
            )


def _broadcasts(shape: tuple[int, ...], target: Shape) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False
