"""A checklist for a user's model: what the kernel needs of it, stage by stage."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_inr import _checks
from ntk_inr._dtypes import accumulation_dtype, eps
from ntk_inr._results import result, static, text_table
from ntk_inr._typing import Apply, Params
from ntk_inr.kernels import assembly, frozen, mixing
from ntk_inr.kernels.model import Model, check_apply, check_params, in_parts, trace_of
from ntk_inr.kernels.operator import check_linear
from ntk_inr.kernels.request import Request

# What each stage needs to have passed.
_NEEDS: dict[str, tuple[str, ...]] = {
    "function": (),
    "parameters": (),
    "coordinates": (),
    "finite": ("parameters", "coordinates"),
    "output": ("function", "parameters", "coordinates"),
    "values": ("finite", "output"),
    "examples": ("values",),
    "derivative": ("values",),
    "fast path": ("output",),
    "rounding": ("derivative",),
}
# Coordinates at which the kernel is computed to see what rounding does to it, and how often.
_ROWS = 7
_NUDGES = 2
# What rounding may move of the kernel, as a share of its largest entry.
_ROUNDED = 1e-3
# Numbers in leaves without a fast path that are worth a word.
_MANY = 4096


@result
class Stage:
    """One line of a checklist.

    Attributes:
        name: what is asked.
        verdict: "ok", "warning", "failed", or "not run" where a stage that it needs failed.
        what: what was seen.
        fix: what to do about it, where something is to be done.
    """

    name: str = static()
    verdict: str = static()
    what: str = static()
    fix: str = static(default="")


@result
class Checklist:
    """What :func:`ntk_inr.check` has seen of a model; ``print`` shows a line a stage.

    Attributes:
        stages: one :class:`.Stage` for each question.
    """

    stages: tuple[Stage, ...]

    @property
    def ok(self) -> bool:
        """Whether no stage failed, so that :func:`ntk_inr.ntk` takes the model."""
        return all(stage.verdict in ("ok", "warning") for stage in self.stages)

    def __getitem__(self, name: str) -> Stage:
        """Return the stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)

    def __str__(self) -> str:
        table = text_table([(stage.verdict, stage.name, stage.what) for stage in self.stages], header=0)
        lines = []
        for line, stage in zip(table.splitlines(), self.stages, strict=True):
            lines += [line, f"         fix: {stage.fix}"] if stage.fix else [line]
        return "\n".join(lines)


def check(apply: Apply, params: Params, x: Any) -> Checklist:
    """Return what is right and what is wrong with a model, stage by stage; ``print`` it to read it.

    A bad model raises nothing: what fails is a line of the list, with what to do about it, and stages that don't
    depend on it are run all the same. The kernel is taken at a few coordinates only.

    Stages:
        function: ``apply`` can be called.
        parameters: arrays of floating point numbers.
        coordinates: floating point numbers (n, d), in [-1, 1].
        finite: no NaN among parameters and coordinates.
        output: ``apply`` is batched, (n, d) to (n, c), and real.
        values: its outputs are finite.
        examples: none changes another's output.
        derivative: finite, and nothing of it is held back by ``stop_gradient`` or bent by a rule.
        fast path: what the structured method does with the parameters.
        rounding: whether it spoils the kernel, as it does where terms cancel.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``.
        params: pytree of floating point or complex arrays.
        x: coordinates (n, d).

    Returns:
        :class:`.Checklist`.

    Raises:
        ValueError: inside ``jit``, ``vmap`` or ``grad``, where there are no values to check.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> params, x = {"w": jnp.ones((2, 8)), "out": jnp.ones((8, 1))}, jnp.linspace(-1, 1, 10).reshape(5, 2)
        >>> checked = ni.check(lambda p, x: jnp.tanh(x @ p["w"]) @ p["out"], params, x)
        >>> checked.ok, checked["output"].what
        (True, '(5, 2) to (5, 1), float32')
        >>> centred = ni.check(lambda p, x: (x - x.mean(0, keepdims=True)) @ p["w"] @ p["out"], params, x)
        >>> [stage.name for stage in centred.stages if stage.verdict == "failed"], centred["examples"].fix[:17]
        (['examples'], 'Pass coupled=True')

    Source: the idea of such a list is bayeux's ``debug``.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((apply, params, x))):
        raise ValueError("check works on the host, so it can't be used inside jit, vmap or grad.")
    examined, stages = _Examined(apply, params, x), dict[str, Stage]()
    with jax.debug_nans(False), jax.debug_infs(False):
        for name, needs in _NEEDS.items():
            missing = [need for need in needs if stages[need].verdict in ("failed", "not run")]
            if missing:
                stages[name] = Stage(name, "not run", f"needs {missing[0]}")
            else:
                stages[name] = _stage(name, getattr(examined, name.replace(" ", "_")))
    return Checklist(tuple(stages.values()))


def _stage(name: str, ask: Any) -> Stage:
    try:
        return Stage(name, *ask())
    except Exception as error:  # of any kind, since the model is anybody's
        message = " ".join(str(error).split()).rstrip(".")
        own = isinstance(error, TypeError | ValueError) and not isinstance(error, jax.errors.JAXTypeError)
        what, _, fix = message.partition(". ")
        if own and not fix:
            what, _, fix = message.partition("; ")
        return Stage(name, "failed", what if own else f"{type(error).__name__}: {what}", fix)


class _Examined:
    """A model, of which each method asks one question: it returns verdict, what was seen and a fix, or raises."""

    def __init__(self, apply: Any, params: Any, x: Any) -> None:
        self.apply, self.params, self.x = apply, params, x
        self.c = 0

    def function(self) -> tuple[str, ...]:
        self.apply = _checks.as_partial(self.apply)
        return "ok", "can be called"

    def parameters(self) -> tuple[str, ...]:
        self.params = check_params(self.params, finite=False)
        leaves = jax.tree.leaves(self.params)
        kinds = sorted({str(jnp.result_type(leaf)) for leaf in leaves})
        text = f"{sum(map(jnp.size, leaves)):,} numbers in {len(leaves)} arrays, {' and '.join(kinds)}"
        if any(eps(kind) > eps(np.float32) for kind in kinds):
            return "warning", text, "Derivatives round at a few digits in half precision; cast parameters to float32."
        return "ok", text

    def coordinates(self) -> tuple[str, ...]:
        self.x = _checks.as_coordinates(self.x, finite=False)
        low, high = float(self.x.min()), float(self.x.max())
        text = f"{self.x.shape[0]:,} of {self.x.shape[1]}, from {low:.3g} to {high:.3g}"
        if max(-low, high) > 1 + 1e-6:
            return "warning", text, "Networks expect [-1, 1], which frequencies and scales are chosen for; scale x."
        return "ok", text

    def finite(self) -> tuple[str, ...]:
        _checks.check_finite_tree(self.params, "params")
        _checks.check_finite(self.x, "x")
        return "ok", "no NaN or infinity"

    def output(self) -> tuple[str, ...]:
        try:
            out = mixing.traced(self.apply, self.params, self.x).out_info
        except Exception as error:  # of any kind, in the model's own code
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return "failed", what, self._batching()
        self.c = check_apply(self.apply, self.params, self.x)
        self.apply, self.params = in_parts(self.apply, self.params, self.x)
        n, d = self.x.shape
        return "ok", f"({n}, {d}) to ({n}, {self.c}), {out.dtype}"

    def _batching(self) -> str:
        """Return what to do about a model that does not take its coordinates."""
        try:
            jax.eval_shape(self.apply, self.params, self.x[0])
        except Exception:  # nor one of them
            return f"apply(params, x) raises it for x of shape {self.x.shape}; run it by itself."
        return "It takes one coordinate at a time; batch it with jax.vmap(apply, in_axes=(None, 0))."

    def values(self) -> tuple[str, ...]:
        rows = mixing.some(self.x)
        values = np.asarray(self.apply(self.params, rows), np.float64)
        if not np.isfinite(values).all():
            where = rows[~np.isfinite(values).all(1)][0].tolist()
            return "failed", f"NaN or infinity at {where}", "Look for a division, root or logarithm of zero there."
        return "ok", f"from {values.min():.3g} to {values.max():.3g}"

    def examples(self) -> tuple[str, ...]:
        mixing.check(self.apply, self.params, self.x, None)
        return "ok", "none depends on another"

    def derivative(self) -> tuple[str, ...]:
        rows = mixing.some(self.x)
        gradient = jax.jit(frozen.gradient)(self.apply, self.params, rows)
        for (path, _), part in zip(jax.tree_util.tree_leaves_with_path(self.params), gradient, strict=True):
            if not np.isfinite(np.asarray(part, np.float64)).all():
                leaf = f"params{jax.tree_util.keystr(path)}"
                fix = "A norm or root at 0 has none; add a small number under it."
                return "failed", f"that by {leaf} is NaN or infinite, though values are finite", fix
        if not any(np.any(part) for part in gradient):
            return "warning", "zero: no output depends on a parameter", "Look for stop_gradient, rounding or a sign."
        if frozen.is_frozen(self.apply, self.params, rows):
            fix = "Training follows ni.kernels.training_kernel, and not ni.ntk; compare both, or take it away."
            return "warning", "stop_gradient leaves out a part of it", fix
        if mixing.has_custom_rule(mixing.traced(self.apply, self.params, rows)):
            try:
                check_linear(self._model(rows))
            except ValueError as error:
                what, _, fix = str(error).partition(". ")
                return "warning", what, fix
        return "ok", "finite, and all there is"

    def fast_path(self) -> tuple[str, ...]:
        trace = trace_of(self._model(self.x), "trace")
        names = [jax.tree_util.keystr(path) or "params" for path, _ in jax.tree_util.tree_leaves_with_path(self.params)]
        leaves = [
            (name, int(np.prod(shape, dtype=int)), how)
            for name, shape, how in zip(names, trace.shapes, trace.sites.handling, strict=True)
        ]
        total = sum(size for _, size, _ in leaves)
        slow = [leaf for leaf in leaves if leaf[2].kind == "jacobian" and leaf[2].why != "fewer flops than as products"]
        share = 1 - sum(size for _, size, _ in slow) / max(1, total)
        text = f"{share:.0%} of the parameters, {trace.flops:,} flops a pair"
        idle = [name for name, _, how in leaves if how.kind == "unused"]
        idle = idle if any(how.kind in ("product", "bias") for *_, how in leaves) else []
        if sum(size for _, size, _ in slow) > _MANY:
            name, _, how = max(slow, key=lambda leaf: leaf[1])
            return (
                "warning",
                f"{text}; {name} keeps its Jacobian: {how.why}",
                ("It is exact all the same, and slow; let such a parameter enter as a factor of a matrix product."),
            )
        if idle:
            return "warning", f"{text}; no output depends on {', '.join(idle[:3])}", "Leave it out of params."
        return "ok", text

    def rounding(self) -> tuple[str, ...]:
        rows = mixing.some(self.x)[:_ROWS]
        unit = max(map(eps, mixing.dtypes(mixing.traced(self.apply, self.params, rows))))

        def kernel(params: Any, rows: Any) -> np.ndarray:
            model = Model(self.apply, params, jnp.asarray(rows), None, self.c, self._dtype, traced=True)
            return np.asarray(assembly.traceable(Request(model)), np.float64)

        plain, moved = kernel(self.params, rows), 0.0
        for draw in range(_NUDGES):
            params = jax.tree.map(lambda leaf, draw=draw: mixing.nudged(leaf, unit, draw), self.params)
            moved = max(moved, np.abs(kernel(params, mixing.nudged(rows, unit, draw)) - plain).max())
        share = moved / (np.abs(plain).max() or 1.0)
        text = f"moves entries of the kernel by {share:.1g} of the largest"
        if not share <= _ROUNDED:
            return (
                "warning",
                text,
                ("Terms cancel, or frequencies are high; take parameters and x in float64 under jax.enable_x64(True)."),
            )
        return "ok", text

    @property
    def _dtype(self) -> np.dtype:
        return accumulation_dtype(*map(jnp.result_type, jax.tree.leaves(self.params)))

    def _model(self, x: Any) -> Model:
        return Model(self.apply, self.params, jnp.asarray(x), None, self.c, self._dtype, traced=False)
