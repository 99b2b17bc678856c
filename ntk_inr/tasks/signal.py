"""One-dimensional signals: sums of sines, chirps, steps, arrays, recordings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ntk_inr import _checks, style
from ntk_inr.tasks import metrics
from ntk_inr.tasks.cost import Cost
from ntk_inr.tasks.files import bundled_name, existing_file, finite_floats, load_npy, new_file
from ntk_inr.tasks.grid import GridPoints, Progress, axis_centres, grid_coordinates, in_batches
from ntk_inr.tasks.image import training_rows
from ntk_inr.tasks.interface import SampledTask, fingerprint
from ntk_inr.tasks.origin import with_origin
from ntk_inr.tasks.wav import read_wav

BUNDLED = ("sines", "chirp", "steps")
SUFFIXES = (".npy", ".csv")
"""What signals are written as."""
_STEPS = 9


@dataclasses.dataclass(frozen=True)
class SignalTask(SampledTask):
    """A signal at equally spaced places, and which of its samples are trained on.

    The network fits the signal moved and scaled to [-1, 1]; reconstructions and scores are in its own unit.

    Attributes:
        name: what to call it in a report.
        signal: (n, c) float32 in its own unit.
        train: (n,) True where a sample is trained on.
        eight_bit: whether the signal came as integers of 8 bits.
        origin: how :func:`ntk_inr.load_task` builds it again; None for arrays.
    """

    kind: ClassVar[str] = "signal"
    noun: ClassVar[str] = "samples"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    smaller: ClassVar[str] = "a shorter signal"

    name: str
    signal: np.ndarray
    train: np.ndarray
    eight_bit: bool = False
    origin: Any = None

    @property
    def coordinates(self) -> np.ndarray:
        """Places (n, 1) in (-1, 1)."""
        return grid_coordinates(self.signal.shape[:1])

    @property
    def values(self) -> np.ndarray:
        """What the network fits, (n, c) in [-1, 1]."""
        return self.at(slice(None))[1]

    def at(self, places: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return coordinates (k, 1) and values (k, c) in [-1, 1] of samples by their places (k,)."""
        middle, half = self._middle_and_half_span
        return GridPoints(self.signal.shape[:1])[places], ((self.signal[places] - middle) / half).astype(np.float32)

    @property
    def data_range(self) -> float:
        """Span of the values, 2."""
        return 2.0

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the signal and of the choice of training samples."""
        return fingerprint(self.signal, self.train)

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        middle, half = self._middle_and_half_span
        return super().describe() | {"shape": list(self.signal.shape), "middle": middle, "half_span": half}

    def cost(self, out: str | Path | None = None) -> Cost:
        """Return what a reconstruction, its scores and its figure take of memory, and its file of disk."""
        return signal_cost(self.signal.shape, out)

    def signal_of(self, predict: Callable[[Any], Any], progress: Progress | None = None) -> np.ndarray:
        """Return the prediction (n, c) in the signal's own unit."""
        return signal_of(predict, self.signal.shape, *self._middle_and_half_span, progress=progress)

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return "psnr" in dB on the training samples, against the span of the signal, and "heldout_psnr"."""
        span = 2 * self._middle_and_half_span[1]
        where = None if self.n == len(self.train) else self.train
        scores = {"psnr": metrics.psnr(reconstruction, self.signal, data_range=span, where=where)}
        if where is not None:
            scores["heldout_psnr"] = metrics.psnr(reconstruction, self.signal, data_range=span, where=~where)
        return scores

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return the signal, and a reconstruction with its error below."""
        rows = 1 if reconstruction is None else 2
        x = self.coordinates[:, 0]
        with style.figure_style():
            figure, axes = style.pyplot().subplots(
                rows, 1, figsize=(9, 1.3 + 1.3 * rows), sharex=True, squeeze=False, height_ratios=[2, 1][:rows]
            )
            top = axes[0, 0]
            for channel, values in enumerate(self.signal.T):
                top.plot(x, values, color=style.MEASURED, label=None if channel else self.name)
                if not self.train.all():
                    label = None if channel else "trained on"
                    top.plot(x[self.train], values[self.train], ".", color=style.NEUTRAL, markersize=4, label=label)
            top.set(ylabel="value", title=f"Signal {self.name}")
            if reconstruction is not None:
                psnr = self.scores(reconstruction)["psnr"]
                label = f"reconstruction, {metrics.decibels(psnr, eight_bit=self.eight_bit)}"
                for channel, values in enumerate(reconstruction.T):
                    top.plot(x, values, "--", color=style.PREDICTED, label=None if channel else label)
                axes[1, 0].plot(x, reconstruction - self.signal, color=style.PREDICTED, linewidth=1)
                axes[1, 0].set_ylabel("error")
            figure.legend(*top.get_legend_handles_labels(), loc="outside right upper")
            axes[-1, 0].set_xlabel("x")
        return figure

    def save(self, reconstruction: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction as ``.npy`` (n, c), or as ``.csv`` with the coordinate in the first column."""
        return save_signal(reconstruction, path, overwrite=overwrite)

    @functools.cached_property
    def _middle_and_half_span(self) -> tuple[float, float]:
        low, high = float(self.signal.min()), float(self.signal.max())
        return (low + high) / 2, (high - low) / 2 or 1.0


def signal_of(
    predict: Callable[[Any], Any], shape: tuple[int, ...], middle: float, half: float, progress: Progress | None = None
) -> np.ndarray:
    """Return a signal of ``shape`` (n, c) in its own unit, in which [-1, 1] has this middle and half span."""
    values = in_batches(predict, GridPoints(shape[:1]), shape[1], progress=progress).astype(np.float64)
    values *= half
    values += middle
    return values


def signal_cost(shape: tuple[int, ...], out: str | Path | None) -> Cost:
    """Return what a signal of a shape (n, c) takes, made, scored, drawn and written."""
    values = shape[0] * shape[1]
    # Nine digits, a sign, an exponent and a comma of each number of a text.
    disk = 0 if out is None else 8 * values if Path(out).suffix.lower() == ".npy" else 16 * (values + shape[0])
    return Cost(20 * values + 2**27, disk, (("matplotlib", "report"),))


def save_signal(signal: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a signal (n, c) as ``.npy``, or as ``.csv`` with the coordinate in the first column."""
    with new_file(path, SUFFIXES, overwrite=overwrite) as written:
        if written.suffix.lower() == ".npy":
            np.save(written, signal)
        else:
            columns = ",".join(["x", *(f"y{i}" for i in range(signal.shape[1]))])
            table = np.concatenate([grid_coordinates(signal.shape[:1]), signal], axis=1)
            np.savetxt(written, table, "%.9g", delimiter=",", header=columns, comments="")
    return Path(path)


@with_origin("signal", BUNDLED)
def signal_task(
    source: Any,
    *,
    samples: int = 512,
    frequencies: Sequence[float] = (1, 2, 4, 8, 16),
    holdout: float = 0.0,
    seed: int = 0,
) -> SignalTask:
    r"""Make a task of a signal in one variable.

    "sines" is :math:`\sum_k \sin(2\pi f_k t + \phi_k)` with random phases, "chirp" a sine whose
    frequency grows linearly from the lowest to the highest of ``frequencies``, "steps" nine levels at random;
    t runs from 0 to 1 over the interval.

    Args:
        source: "sines", "chirp", "steps"; a ``.wav`` file (mixed down to one channel) or a ``.npy`` file;
            or an array (n,) or (n, c), of NumPy, JAX or lists.
        samples: number of samples of a signal given by name; others keep their own.
        frequencies: f, in cycles over the interval.
        holdout: share of the samples held out for testing, at random, in [0, 1).
        seed: of phases, levels and held-out samples.

    Returns:
        :class:`SignalTask`.

    Raises:
        FileNotFoundError: no such file, and no signal of that name.
        ValueError: NaN or infinite values, fewer than two samples, wrong rank, frequencies above half the
            number of samples, which the samples can't show.

    Example:
        >>> task = signal_task("chirp", samples=128)
        >>> task.x.shape, task.y.shape, task.data_range
        ((128, 1), (128, 1), 2.0)

    Source: sums of sines after Rahaman et al., "On the Spectral Bias of Neural Networks" (ICML 2019),
    arXiv 1806.08734.
    """
    _checks.check_positive(samples, "samples", integer=True, least=2)
    _checks.check_positive(seed, "seed", integer=True, least=0)
    name, signal, eight_bit = _load(source, samples, frequencies, seed)
    if signal.ndim == 1:
        signal = signal[:, None]
    if signal.ndim != 2 or len(signal) < 2:
        raise ValueError(f"{name} has shape {signal.shape}; expected (n,) or (n, c) with at least two samples.")
    return SignalTask(name, signal, training_rows(len(signal), holdout, seed), eight_bit)


def _load(source: Any, samples: int, frequencies: Sequence[float], seed: int) -> tuple[str, np.ndarray, bool]:
    """Return name and values of a signal, and whether they came as integers of 8 bits."""
    array = _checks.as_numpy(source, "signal")
    if array is not None:
        return "array", finite_floats(array, "signal"), array.dtype.itemsize == 1
    if name := bundled_name(source, BUNDLED):
        return name, _generate(name, samples, frequencies, np.random.default_rng(seed)), False
    path = existing_file(source, "signal", BUNDLED)
    if path.suffix.lower() == ".npy":
        array = load_npy(path)
        return path.name, finite_floats(array, str(path)), array.dtype.itemsize == 1
    if path.suffix.lower() != ".wav":
        raise ValueError(f"{str(path)!r} is no signal; expected .wav or .npy, or one of {', '.join(BUNDLED)}.")
    recording = read_wav(path)
    how, sound = recording.mixed("mix")
    return (f"{path.name} ({how})" if how else path.name), sound, recording.eight_bit


def _generate(name: str, samples: int, frequencies: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    t = (axis_centres(samples) + 1) / 2
    if name == "steps":
        return rng.uniform(-1, 1, _STEPS)[np.minimum((t * _STEPS).astype(int), _STEPS - 1)]
    rates = np.asarray(frequencies, float)
    if rates.ndim != 1 or not rates.size or not (np.isfinite(rates) & (rates > 0)).all():
        raise ValueError(f"frequencies is {frequencies!r}; expected numbers above 0, such as (1, 2, 4).")
    if rates.max() >= samples / 2:
        raise ValueError(
            f"frequency {rates.max():g} needs more than {2 * rates.max():g} samples; got samples={samples}."
        )
    if name == "chirp":
        return np.sin(2 * np.pi * (rates.min() * t + (rates.max() - rates.min()) * t**2 / 2))
    phases = rng.uniform(0, 2 * np.pi, rates.size)
    return np.sin(2 * np.pi * rates * t[:, None] + phases).sum(axis=1)
