"""Residuals: the values of a step that its backward pass reads, and this pass.

The step of a cell is differentiated by `jax.vjp`, with a tape that returns the recorded
results of its operations. `plan_of` looks into the program of the derivative to find
the values that it reads: only these are kept.
"""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr
from jaxtyping import Array, Float

from rdrop.cells import Recurrence, Weights
from rdrop.cells.recurrence import Carry
from rdrop.cells.tape import OperandTape, Recorder, Replay
from rdrop.dropout import Masks


class StepResiduals(NamedTuple):
    """Values of one step, or of all steps with a time axis; None if not kept.

    Attributes:
        carry: leaves of the carry before the step.
        z: the projected input.
        products: results of the matrix products.
        values: results of the other operations of the tape.
    """

    carry: Any
    z: Any
    products: Any
    values: Any


class Plan(NamedTuple):
    """How a cell is differentiated.

    Attributes:
        reads: a `StepResiduals` of booleans: whether the backward pass reads a value.
        groups: of the values that it reads, by index: each group is kept in one array.
        reads_last: for each group, whether it is read after the loop over time, for the
            gradients of the kernels.
        outputs_h: whether the output is the h that the next step sees, so that h need
            not be kept.
        direct: names of the weights that the step uses outside of matrix products.
        same_as_z: for each product, whether its cotangent is the cotangent of z.
    """

    reads: StepResiduals
    groups: list[list[int]]
    reads_last: list[bool]
    outputs_h: bool
    direct: list[str]
    same_as_z: list[bool]


class Cotangents(NamedTuple):
    """Cotangents of the arguments of a step, and of its matrix products in order."""

    direct: Weights
    carry: Carry
    z: Float[Array, "B GH"]
    masks: Masks
    products: list[Float[Array, "B GH"]]


def record(
    cell: Recurrence,
    weights: Weights,
    carry: Carry,
    z: Float[Array, "B GH"],
    masks: Masks,
) -> tuple[tuple[Carry, Float[Array, "B H"]], StepResiduals, list[Any]]:
    """Advances a cell by one step.

    Returns:
        The result of `cell.step`, all values of the step, and the kernels in the order
        of the products.
    """
    tape = Recorder()
    stepped = cell.step(weights, carry, z, masks, tape)
    step = StepResiduals(jax.tree.leaves(carry), z, tape.products, tape.values)
    return stepped, step, tape.kernels


def pull(
    cell: Recurrence,
    weights: Weights,
    direct: list[str],
    transposed: list[Any],
    like: Carry,
    step: StepResiduals,
    masks: Masks,
    d_stepped: tuple[Carry, Float[Array, "B H"]],
) -> Cotangents:
    """Pulls the cotangents of a step back to its arguments.

    Args:
        cell: the recurrence.
        weights: as the cell uses them.
        direct: names of weights whose cotangents are wanted.
        transposed: the transposed kernels.
        like: a carry, for its structure.
        step: all values of the step; the ones that are not read may be zeros.
        masks: of the step.
        d_stepped: cotangents of the new carry and of the output.
    """

    def replayed(some, carry, z, masks, taps):
        tape = Replay(step.products, step.values, transposed, taps)
        return cell.step(weights | some, carry, z, masks, tape)

    some = {name: weights[name] for name in direct}
    taps = jax.tree.map(jnp.zeros_like, step.products)
    carry = jax.tree.unflatten(jax.tree.structure(like), step.carry)
    arguments = (some, carry, step.z, masks, taps)
    _, back = jax.vjp(replayed, *arguments)
    return Cotangents(*back(d_stepped))


def operands_of(
    cell: Recurrence,
    weights: Weights,
    like: Carry,
    step: StepResiduals,
    masks: Masks,
) -> list[list[Float[Array, "B K"]]]:
    """Returns the left operands of the matrix products of a step, masks applied."""
    tape = OperandTape(step.products, step.values)
    carry = jax.tree.unflatten(jax.tree.structure(like), step.carry)
    cell.step(weights, carry, step.z, masks, tape)
    return tape.operands


def plan_of(
    cell: Recurrence,
    weights: Weights,
    carry: Carry,
    z: Float[Array, "B GH"],
    masks: Masks,
) -> Plan:
    """Finds out how to differentiate a cell; only shapes of the arguments matter."""
    stepped, step, kernels = record(cell, weights, carry, z, masks)
    transposed = [kernel.T for kernel in kernels]

    def advanced(carry):
        return record(cell, weights, carry, z, masks)[0]

    def replayed(weights):
        tape = Replay(step.products, step.values, transposed, step.products)
        return cell.step(weights, carry, z, masks, tape)

    def pulled(step):
        return pull(cell, weights, direct, transposed, carry, step, masks, stepped)

    def operands(step):
        return operands_of(cell, weights, carry, step, masks)

    _, (new, y) = _inspect(advanced, carry)
    outputs_h = jax.tree.leaves(new)[-1] is y
    reads_weights, _ = _inspect(replayed, weights)
    direct = [name for name in weights if reads_weights[name]]
    reads_back, cotangents = _inspect(pulled, step)
    reads_last, _ = _inspect(operands, step)
    reads = jax.tree.map(operator.or_, reads_back, reads_last)
    if outputs_h:
        reads.carry[-1] = False
    same = [product is cotangents.z for product in cotangents.products]
    last = jax.tree.leaves(_kept(reads_last, reads))
    groups = _groups(step, reads)
    long = [any(last[n] for n in group) for group in groups]
    return Plan(reads, groups, long, outputs_h, direct, same)


def pack(step: StepResiduals, plan: Plan) -> list[Float[Array, "..."]]:
    """Returns the values of a step to keep, some of them side by side in one array."""
    values = jax.tree.leaves(_kept(step, plan.reads))
    return [
        jnp.concatenate([values[n] for n in group], axis=-1) for group in plan.groups
    ]


def unpack(
    arrays: list[Float[Array, "..."]],
    plan: Plan,
    example: StepResiduals,
    h: Float[Array, "B H"] | None,
) -> StepResiduals:
    """Returns the values of a step, with zeros for the ones that were not kept.

    Args:
        arrays: as `pack` returns them.
        plan: of the cell.
        example: all values of a step.
        h: the h before the step, if the plan says that it is not kept.
    """
    like, structure = jax.tree.flatten(_kept(example, plan.reads))
    values = list(like)
    for group, array in zip(plan.groups, arrays, strict=True):
        ends = np.cumsum([like[n].shape[-1] for n in group])[:-1]
        for n, value in zip(group, jnp.split(array, ends, axis=-1), strict=True):
            values[n] = value
    step = jax.tree.map(
        lambda like, value: jnp.zeros_like(like) if value is None else value,
        example,
        jax.tree.unflatten(structure, values),
    )
    return step if h is None else step._replace(carry=[*step.carry[:-1], h])


def _kept(step, reads):
    return jax.tree.map(lambda value, read: value if read else None, step, reads)


def _groups(step: StepResiduals, reads: StepResiduals) -> list[list[int]]:
    """Groups the values to keep: one array, if there can be, as wide as z.

    That array takes the place of the projected inputs.
    """
    values = jax.tree.leaves(_kept(step, reads))
    widest_first = sorted(range(len(values)), key=lambda n: -values[n].shape[-1])
    chosen: list[int] = []
    room = step.z.shape[-1]
    for n in widest_first:
        if values[n].dtype == step.z.dtype and values[n].shape[-1] <= room:
            chosen.append(n)
            room -= values[n].shape[-1]
    if room:
        chosen = []
    alone = [[n] for n in range(len(values)) if n not in chosen]
    return [chosen, *alone] if chosen else alone


def _inspect(function, argument):
    """Returns which leaves of the argument a function reads, and its results.

    The results are variables of the function's program: the same one for results that
    are one value.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(argument)
    reads = jax.tree.unflatten(jax.tree.structure(argument), _reads(closed.jaxpr))
    results = jax.tree.unflatten(jax.tree.structure(shapes), closed.jaxpr.outvars)
    return reads, results


def _reads(jaxpr: Jaxpr) -> list[bool]:
    """Returns which inputs of a program its outputs depend on."""
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    return [id(variable) in needed for variable in jaxpr.invars]
