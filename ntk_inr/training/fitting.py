"""Training with optax: ``fit`` and ``fit_seeds``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import Array
from jax.sharding import Mesh

from ntk_inr.training.data import HostData
from ntk_inr.training.loop import train
from ntk_inr.training.options import Options
from ntk_inr.training.recorder import Recorder
from ntk_inr.training.result import FitResult


def fit(
    apply: Any,
    params: Any,
    x: Any = None,
    y: Any = None,
    *,
    data: Any = None,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 1000,
    key: Array | None = None,
    loss: str | Callable[[Any, Any], Any] = "mse",
    batch_size: int | None = None,
    sampling: str = "shuffle",
    microbatch: int | None = None,
    stop_at: float | None = None,
    validation: tuple[Any, Any] | None = None,
    ntk_points: int | None = None,
    data_range: float = 1.0,
    report_every: int | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    recorder: Recorder | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    checkpoint_keep: int = 3,
    keep: str = "last",
    resume: bool | str = True,
    overwrite: bool = False,
    mesh: Mesh | None = None,
) -> FitResult:
    r"""Train on ``(x, y)``, or on ``data`` that come by the step, and record the curve.

    The loss "mse" is :math:`\frac{1}{2nc}\lVert f - y\rVert^2` (``optax.l2_loss``, averaged). Steps run fused
    on the device between reports, whose own cost is not in "seconds". The cost of a step follows its rows, not n; so
    does that of a report, which is on at most 65,536 rows, the same each time, but for the last one, on all. Models
    with batch statistics or schedules (TopK's k, say) run as in training and change as they go, if ``apply`` comes
    from :func:`init` or :func:`split` itself; a function around it hides that.

    With ``checkpoint``, the state is saved at intervals, at the end, and on SIGINT, SIGTERM and SIGHUP, after which
    the run ends with status "interrupted". The same call takes it up again, also after ``kill -9``, and ends on CPU
    with the same bits as a run that was never stopped. What identifies a run is the start, the data, the key, the
    settings, and the model, loss and optimizer as JAX traces them, so another version of JAX is another run. Its
    steps do not: the same call with more of them goes on, and with a constant rate ends as the longer run would.

    Data by the step serve what is no table of rows: fresh points of a shape or an equation, rays, patches of a volume
    on disk, coarse-to-fine. Reports and the kernels of a recorder are then on the rows of the step that comes, which
    no step has seen yet, or for the kernels on those of the first; ``validation`` rows are fixed. With a task,
    ``task.observe(apply)`` is trained as ever: it maps the sampler's x to what is measured there.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``.
        params: pytree of floating point or complex arrays; not changed.
        x: coordinates (n, d).
        y: values (n, c).
        data: instead of x and y, ``sampler(key, step) -> (x (m, d), y (m, c))`` or ``(x, y, weights (m,))``, traced,
            with a key of its own for each step; or :func:`host_data`, for a function on the host. Weights multiply
            the losses of the rows, whose mean over m is minimised.
        optimizer: any optax transformation, as :func:`optimizer` makes them by name; None is ``optax.adam(1e-3)``.
            L-BFGS takes the full batch only.
        steps: number of steps, at least 1.
        key: random key, needed for minibatches and for a sampler.
        loss: "mse", "l1", "huber" (linear beyond 0.1 data_range), "bce" (of logits, y in [0, 1]), or a function
            ``(prediction (n, c'), y (n, c)) -> (n,)``, where c' may differ from c.
        batch_size: rows of a step; None is full batch.
        sampling: "shuffle": each epoch draws batches without replacement, leaving out the n mod batch_size
            examples that its order puts last. "uniform": each row is drawn from all. "loss": half of the chance is
            by a row's last known loss and half uniform, and rows are weighted so that the gradient stays unbiased.
            "ntk": the same by how far a step moves each row's prediction, the norm of its row of J J^T g, which
            one pass over all rows each way computes every five epochs (Zhang et al. 2025, arXiv 2511.15487, who
            take the rows of the largest norms).
        microbatch: rows that are computed at once, which bounds memory, in steps and in reports. The gradient is
            that of the whole batch, to rounding; batch statistics are of a microbatch. None is all of them, but on
            a CPU some 8192, which its caches hold, where nothing needs the whole batch.
        stop_at: PSNR in dB on the training data; the first report that reaches it ends the run.
        validation: further ``(x, y)`` to report loss and PSNR on.
        ntk_points: record moments of the kernel on this many evenly spaced rows of x.
        data_range: span of the values, for PSNR, "huber" and what counts as divergence.
        report_every: steps between reports; None is some 40 of them in geometric progression.
        progress: called with (steps done, steps, figures) at each report, and every half second between:
            figures by name such as "loss" and "psnr" of the last report, and "batch_loss" of the last step.
        recorder: a :class:`Recorder` of the kernel during training.
        checkpoint: folder for checkpoints, made where it does not exist.
        checkpoint_every: seconds if a float, steps if an int.
        checkpoint_keep: how many of the newest checkpoints stay.
        keep: which parameters the result has: the "last", or those of the "best" report, by PSNR (by the loss where
            there is none), of the validation rows where there are any.
        resume: go on from the folder's newest checkpoint of this run. False refuses where there is one. "further":
            also where the optimizer has another rate or schedule by now, whose count of steps goes on.
        overwrite: delete checkpoints that can't be resumed (of another run, or with ``resume=False``).
        mesh: devices that share the rows of each step, a multiple of their number; the result is that of one
            device, to rounding. Parameters and data are on every device, which this process must have all.

    Returns:
        :class:`FitResult`. A loss that is not finite, or above 1e4 times both the first one and that of an error
        of the whole data_range (log 2 for "bce"), ends the run with status "diverged" and the last good
        parameters; it does not raise. For a function as ``loss`` only what is not finite counts. A run that took all
        its steps to a higher loss than it began with has the status "ended above the start".

    Raises:
        TypeError: integer coordinates, or an optimizer that is not optax's.
        ValueError: x and y of different n, wrong ranks, NaN, zero steps, a batch larger than n, an unknown name,
            both x, y and ``data`` or neither, L-BFGS with minibatches, rows that the devices can't share equally.
        FileExistsError: ``checkpoint`` holds another run's, or the recorder's file exists.
        OSError: a checkpoint can't be written, as on a full disk; the last good one is intact.

    Example:
        >>> import jax, jax.numpy as jnp, optax, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> apply, params = ni.init(ni.variant("siren", features=32, depth=2), jax.random.key(0), x)
        >>> result = ni.fit(apply, params, x, jnp.sin(5 * x) / 2 + 0.5, optimizer=optax.adam(1e-3), steps=100)
        >>> result.status, bool(result.history["psnr"][-1] > 30)
        ('finished', True)
    """
    options = Options(
        optimizer=optimizer, steps=steps, key=key, loss=loss, batch_size=batch_size, sampling=sampling,
        microbatch=microbatch, stop_at=stop_at, validation=validation, ntk_points=ntk_points, data_range=data_range,
        report_every=report_every, progress=progress, recorder=recorder, checkpoint=checkpoint,
        checkpoint_every=checkpoint_every, checkpoint_keep=checkpoint_keep, keep=keep, resume=resume,
        overwrite=overwrite, mesh=mesh,
    )  # fmt: skip
    return train(apply, params, _one_of(x, y, data), options, seeds=None)[0]


def fit_seeds(
    apply: Any, params: Any, x: Any = None, y: Any = None, *, data: Any = None, **options: Any
) -> list[FitResult]:
    """Train several seeds at once under ``vmap``.

    As :func:`fit`, but ``apply`` and ``params`` carry a leading axis of seeds, as
    ``jax.vmap(lambda key: ni.init(net, key, x))(keys)`` returns them. Memory grows with the number of
    seeds. "seconds" is the time of all of them divided by their number; all stop once all reached the target.

    Args:
        apply: stacked, as above.
        params: stacked, as above.
        x: coordinates (n, d), shared.
        y: values (n, c), shared.
        data: instead of both, as of :func:`fit`; a sampler has another key for each seed.
        **options: the keyword arguments of :func:`fit`, but ``recorder``.

    Returns:
        A :class:`FitResult` a seed.

    Raises:
        ValueError: a ``recorder``, or as :func:`fit`.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> net = ni.variant("siren", features=32, depth=2)
        >>> apply, params = jax.vmap(lambda k: ni.init(net, k, x))(jax.random.split(jax.random.key(0), 3))
        >>> len(ni.fit_seeds(apply, params, x, jnp.sin(x), steps=10))
        3
    """
    return train(apply, params, _one_of(x, y, data), Options(**options), seeds=len(jax.tree.leaves(params)[0]))


def _one_of(x: Any, y: Any, data: Any) -> Any:
    """Return ``(x, y)`` or ``data``, whichever there is."""
    if data is None:
        return x, y
    if x is not None or y is not None:
        raise ValueError("fit got x or y, and data= too; give x and y, or data=, a sampler of the rows of each step.")
    if not isinstance(data, HostData) and not callable(data):
        raise TypeError(
            f"data is {type(data).__name__}; expected sampler(key, step) -> (x, y), or what ni.host_data gives."
        )
    return data
