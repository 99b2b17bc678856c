r"""Value, gradient and Laplacian of a function, carried forwards through its program together.

With :math:`y = f(x)`, :math:`\partial_i y = f'\partial_i x` and
:math:`\Delta y = f'\Delta x + \sum_i f''[\partial_i x, \partial_i x]`, so that a network of d coordinates costs
d + 2 of its passes, where second derivatives along each axis cost 2d + 1. Products, linear and elementwise operations
have rules of their own; JAX differentiates all others twice along a curve.

Source: Li et al., "A computational framework for neural network-based variational Monte Carlo with Forward
Laplacian" (2024), arXiv 2307.08214.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr.kernels.program import Atom, Equation, Loop, Name, Program, shape_of

_SUMS = {"add", "add_any", "sub"}
# Linear in the numbers among their operands, all together.
_LINEAR = _SUMS | {
    "neg", "reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "reduce_sum", "cumsum",
    "reduce_window_sum", "convert_element_type", "copy", "copy_p", "slice", "dynamic_slice", "dynamic_update_slice",
    "gather", "scatter-add", "pad", "rev", "concatenate", "select_n", "real", "imag", "complex",
}  # fmt: skip
_BILINEAR = {"mul", "dot_general", "conv_general_dilated"}
# Functions of each entry alone; of two operands, in one of them.
_ELEMENTWISE = {
    "abs", "asin", "asinh", "acos", "acosh", "atan", "atan2", "atanh", "cbrt", "ceil", "clamp", "cos", "cosh",
    "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "integer_pow", "lgamma", "log", "log1p",
    "logistic", "max", "min", "pow", "rem", "round", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh",
}  # fmt: skip

Function = Callable[..., list[Any]]


class Carried(NamedTuple):
    """A value with its derivatives by d coordinates: d first ones, and their Laplacian or None for zeros.

    First derivatives are arrays of their own, since one of all costs XLA's CPU half as much again.
    """

    value: Array
    gradient: list[Array]
    laplacian: Array | None


def forward_laplacian(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], tuple[Array, Array, Array]]:
    """Return ``(params, x) -> ((n, c), (n, c, d), (n, c))``: outputs, their gradients by x and their Laplacians.

    Each row of x (n, d) is taken to affect its own outputs alone.

    Example:
        >>> import jax.numpy as jnp
        >>> of = forward_laplacian(lambda params, x: params * x[:, :1] ** 2 + x[:, 1:] ** 3)
        >>> [part.tolist() for part in of(3.0, jnp.array([[1.0, 2.0]]))]
        [[[11.0]], [[[6.0, 12.0]]], [[18.0]]]
    """

    def observed(params: Any, x: Any) -> tuple[Array, Array, Array]:
        params, x = jax.tree.map(jnp.asarray, (params, x))
        closed = jax.make_jaxpr(apply)(params, x)
        leaves = jax.tree.leaves(params)
        program = Program(closed, [False] * len(leaves) + [True])
        axes = jnp.eye(x.shape[1], dtype=x.dtype)
        start = Carried(x, [jnp.broadcast_to(axis, x.shape) for axis in axes], None)
        end = _carry(program, leaves, start)
        if not isinstance(end, Carried):
            return end, jnp.zeros((*end.shape, x.shape[1]), end.dtype), jnp.zeros_like(end)
        return end.value, jnp.stack(end.gradient, -1), _bend(end)

    return observed


def _carry(program: Program, leaves: Sequence[Any], start: Carried) -> Any:
    """Return what the program's one output is, :class:`Carried` where it depends on the last argument."""
    (wanted,) = program.outputs
    needed, live = program.needed([wanted])
    values = program.given([*leaves, start])

    def read(atom: Atom) -> Any:
        return values[atom] if isinstance(atom, Name) else atom.val

    for equation in needed:
        inputs = [read(atom) for atom in equation.inputs]
        if not any(isinstance(value, Carried) for value in inputs):
            values.update(equation.results(inputs, live))
            continue
        outputs = [name for name in equation.outputs if name in live]
        values.update(zip(outputs, _results(equation, outputs, inputs, live), strict=True))
    return read(wanted)


def _results(equation: Equation | Loop, outputs: Sequence[Name], inputs: Sequence[Any], live: set[Name]) -> list[Any]:
    """Return the values of the ``outputs`` of an equation some of whose inputs are :class:`Carried`."""
    pairs = zip(equation.inputs, inputs, strict=True)
    moving = dict.fromkeys(atom for atom, value in pairs if isinstance(value, Carried))
    places = [place for place, value in enumerate(inputs) if isinstance(value, Carried)]
    carried = [inputs[equation.inputs.index(atom)] for atom in moving]
    plain = [value.value if isinstance(value, Carried) else value for value in inputs]

    def function(*values: Any, fixed: Sequence[Any] = plain) -> list[Any]:
        # An operand that an equation has twice is one of the values.
        moved = dict(zip(moving, values, strict=True))
        operands = [moved[atom] if k in places else fixed[k] for k, atom in enumerate(equation.inputs)]
        made = dict(equation.results(operands, live))
        return [made[name] for name in outputs]

    if not any(jnp.issubdtype(name.aval.dtype, jnp.inexact) for name in outputs):
        return function(*(each.value for each in carried))
    kind, one = equation.kind, carried[0] if len(carried) == 1 else None
    once = len(places) == 1
    if once and (kind in _BILINEAR or (kind == "div" and places == [0])):
        return [_linear(function, function, carried)]
    if one and once and kind in _SUMS and one.value.shape == shape_of(outputs[0]):
        sign = -1 if kind == "sub" and places == [1] else 1
        bend = None if one.laplacian is None else sign * one.laplacian
        return [Carried(function(one.value)[0], [sign * slope for slope in one.gradient], bend)]
    if kind in _LINEAR and not any(map(_is_number, equation.inputs)):
        # What does not depend on the coordinates is left out of the derivatives.
        zeros = [jnp.zeros_like(value) if _is_inexact(value) else value for value in plain]
        return [_linear(function, functools.partial(function, fixed=zeros), carried)]
    if kind in _BILINEAR and one is None:
        return [_product(lambda *factors: function(*factors)[0], *carried)]
    if kind == "div" and (once or one is None):
        return [_quotient(function, inputs)]
    if one and (kind in _ELEMENTWISE or kind in ("mul", "div")) and not jnp.iscomplexobj(one.value):
        return [_elementwise(lambda u: function(u)[0], one)]
    return _general(function, carried)


def _is_inexact(value: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.inexact))


def _is_number(atom: Atom) -> bool:
    """Return whether this is a number other than zero that the program has written into the equation."""
    return isinstance(atom, jex.Literal) and _is_inexact(atom.val) and bool(np.any(atom.val))


def _linear(function: Function, derivative: Function, carried: Sequence[Carried]) -> Carried:
    (value,) = function(*(each.value for each in carried))
    gradient = [derivative(*slopes)[0] for slopes in zip(*(each.gradient for each in carried), strict=True)]
    if all(each.laplacian is None for each in carried):
        return Carried(value, gradient, None)
    (bend,) = derivative(*map(_bend, carried))
    return Carried(value, gradient, bend)


def _bend(carried: Carried) -> Array:
    return jnp.zeros_like(carried.value) if carried.laplacian is None else carried.laplacian


def _product(product: Callable[[Any, Any], Any], a: Carried, b: Carried) -> Carried:
    slopes = list(zip(a.gradient, b.gradient, strict=True))
    gradient = [product(a.value, of_b) + product(of_a, b.value) for of_a, of_b in slopes]
    bend = 2 * sum(product(of_a, of_b) for of_a, of_b in slopes)
    if a.laplacian is not None:
        bend = bend + product(a.laplacian, b.value)
    if b.laplacian is not None:
        bend = bend + product(a.value, b.laplacian)
    return Carried(product(a.value, b.value), gradient, bend)


def _quotient(function: Function, inputs: Sequence[Any]) -> Carried:
    """Return y = a / b, from the derivatives of a = y b."""
    a, b = inputs
    (value,) = function(*(each.value for each in inputs if isinstance(each, Carried)))
    above: list[Any] = a.gradient if isinstance(a, Carried) else [0] * len(b.gradient)
    gradient = [(of_a - value * of_b) / b.value for of_a, of_b in zip(above, b.gradient, strict=True)]
    bend = -2 * sum(slope * of_b for slope, of_b in zip(gradient, b.gradient, strict=True))
    if b.laplacian is not None:
        bend = bend - value * b.laplacian
    if isinstance(a, Carried) and a.laplacian is not None:
        bend = bend + a.laplacian
    return Carried(value, gradient, bend / b.value)


def _elementwise(function: Callable[[Any], Any], u: Carried) -> Carried:
    one = jnp.ones_like(u.value)

    def once(point: Any) -> tuple[Any, Any]:
        return jax.jvp(function, (point,), (one,))

    (value, slope), (_, curvature) = jax.jvp(once, (u.value,), (one,))
    bend = curvature * sum(of_u * of_u for of_u in u.gradient)
    if u.laplacian is not None:
        bend = bend + slope * u.laplacian
    return Carried(value, [slope * of_u for of_u in u.gradient], bend)


def _general(function: Function, carried: Sequence[Carried]) -> list[Any]:
    r"""Differentiate twice along each curve :math:`x + t\,\partial_i x + \frac{t^2}{2d}\Delta x`."""
    points = [each.value for each in carried]
    slopes = [list(along) for along in zip(*(each.gradient for each in carried), strict=True)]
    bends = [_bend(each) / len(slopes) for each in carried]
    values = function(*points)
    moving = [place for place, value in enumerate(values) if _is_inexact(value)]

    def numbers(*points: Any) -> list[Any]:
        made = function(*points)
        return [made[place] for place in moving]

    def along(slopes: list[Any]) -> tuple[list[Any], list[Any]]:
        def once(points: list[Any], slopes: list[Any]) -> tuple[list[Any], list[Any]]:
            return jax.jvp(numbers, points, slopes)

        (_, first), (_, second) = jax.jvp(once, (points, slopes), (slopes, bends))
        return first, second

    parts = [along(each) for each in slopes]
    found = list(values)
    for k, place in enumerate(moving):
        gradient = [first[k] for first, _ in parts]
        found[place] = Carried(values[place], gradient, sum(second[k] for _, second in parts))
    return found
