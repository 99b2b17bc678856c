"""Sound as a task: waveforms against time, signal-to-noise ratio, wav files in and out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ntk_inr import _checks, style
from ntk_inr.tasks import metrics
from ntk_inr.tasks.cost import Cost
from ntk_inr.tasks.files import bundled_name, existing_file, finite_floats
from ntk_inr.tasks.grid import GridPoints, Progress, in_batches
from ntk_inr.tasks.interface import OnDemandTask, fingerprint
from ntk_inr.tasks.origin import with_origin
from ntk_inr.tasks.wav import Recording, read_wav, write_wav

BUNDLED = ("chord", "sweep")
_RATE = 8000
_WINDOW = 256
# Columns of a spectrogram that are drawn at most.
_MOST_FRAMES = 1000


@dataclasses.dataclass(frozen=True)
class AudioTask(OnDemandTask):
    """A recording in one channel, to be fitted as a function of time.

    The network fits the waveform scaled to a peak of 1; reconstructions are in the sound's own scale.

    Attributes:
        name: what to call it in a report; it says which channel was taken.
        rate: samples a second.
        samples: (n,) float32; full scale of a file is [-1, 1].
        eight_bit: whether they came as integers of 8 bits.
        origin: how :func:`ntk_inr.load_task` builds it again; None for arrays.
    """

    kind: ClassVar[str] = "audio"
    noun: ClassVar[str] = "samples"
    suffixes: ClassVar[tuple[str, ...]] = (".wav",)
    smaller: ClassVar[str] = "fewer seconds=, or a lower rate="
    metric: ClassVar[str] = "snr"

    name: str
    rate: int
    samples: np.ndarray
    eight_bit: bool = False
    origin: Any = None

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.samples)

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return times (k, 1), from -1 at the start to 1 at the end, and the waveform there (k, 1) with a peak of 1."""
        return GridPoints(self.samples.shape)[indices], (self.samples[indices] / self._peak)[:, None]

    @property
    def summary(self) -> str:
        """What is fitted, in a few words."""
        return f"{self.name}, {self.seconds:.3g} s at {self.rate} Hz"

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        return super().describe() | {"shape": [self.n], "rate": self.rate, "peak": float(self._peak)}

    def cost(self, out: str | Path | None = None) -> Cost:
        """Return what a reconstruction, its scores and its figure take of memory, and its file of disk."""
        return sound_cost(self.n, out)

    @property
    def data_range(self) -> float:
        """Span of the values, 2."""
        return 2.0

    @property
    def seconds(self) -> float:
        """Duration of the sound."""
        return len(self.samples) / self.rate

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the samples and their rate."""
        return fingerprint(self.rate, self.samples)

    @functools.cached_property
    def _peak(self) -> np.floating:
        return max(self.samples.max(), -self.samples.min())

    def signal_of(self, predict: Callable[[Any], Any], progress: Progress | None = None) -> np.ndarray:
        """Return the waveform (n,) in the sound's own scale."""
        return sound_of(predict, self.n, float(self._peak), progress)

    def scores(self, reconstruction: np.ndarray) -> dict[str, float]:
        """Return "snr" in dB, and "psnr" in dB against twice the sound's peak."""
        return {
            "snr": metrics.snr(reconstruction, self.samples),
            "psnr": metrics.psnr(reconstruction, self.samples, data_range=2 * float(self._peak)),
        }

    def figure(self, reconstruction: np.ndarray | None = None) -> Any:
        """Return waveform and spectrogram of the sound, and of a reconstruction and its error."""
        lines = [(self.name, self.samples, style.MEASURED)]
        if reconstruction is not None:
            title = f"reconstruction, SNR {self.scores(reconstruction)['snr']:.1f} dB"
            lines += [
                (title, reconstruction, style.FAST),
                ("error", reconstruction - self.samples, style.PREDICTED),
            ]
        top = self._power(self.samples)[2].max()
        with style.figure_style():
            figure, axes = style.pyplot().subplots(
                len(lines), 2, figsize=(10, 0.6 + 1.7 * len(lines)), squeeze=False, sharex=True, sharey="col"
            )
            for (title, samples, color), (left, right) in zip(lines, axes, strict=True):
                left.plot(*self._drawable(samples), color=color, linewidth=0.5)
                left.set(title=title, ylabel="amplitude")
                frequencies, frames, power = self._power(samples)
                drawn = right.pcolormesh(
                    frames, frequencies / 1000, power, vmin=top - 80, vmax=top, cmap=style.SEQUENTIAL, rasterized=True
                )
                right.set(ylabel="kHz")
                right.grid(False)
                figure.colorbar(drawn, ax=right, label="dB")
            for axis in axes[-1]:
                axis.set_xlabel("seconds")
        return figure

    def save(self, reconstruction: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction as a 16-bit ``.wav``, clipped to full scale where the sound itself exceeds it."""
        return write_wav(path, self.rate, reconstruction, overwrite=overwrite)

    def _power(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return frequencies in Hz, times in seconds, and power in dB (frequencies, times)."""
        import scipy.signal

        window = min(_WINDOW, len(samples))
        if len(samples) <= _MOST_FRAMES * window:
            frequencies, times, power = scipy.signal.spectrogram(samples, self.rate, nperseg=window)
        else:
            starts = np.linspace(0, len(samples) - window, _MOST_FRAMES).astype(int)
            shown = samples[starts[:, None] + np.arange(window)].ravel()
            frequencies, _, power = scipy.signal.spectrogram(shown, self.rate, nperseg=window, noverlap=0)
            times = (starts + window / 2) / self.rate
        return frequencies, times, 10 * np.log10(power + np.finfo(np.float32).tiny)

    def _drawable(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return times in seconds and samples, of long sounds the least and the greatest of equal parts."""
        part = len(samples) // (_MOST_FRAMES * 4)
        if part < 4:
            return np.arange(len(samples)) / self.rate, samples
        parts = samples[: len(samples) // part * part].reshape(-1, part)
        times = np.repeat(np.arange(len(parts)) * part / self.rate, 2)
        return times, np.stack([parts.min(axis=1), parts.max(axis=1)], axis=1).ravel()


def sound_of(predict: Callable[[Any], Any], samples: int, peak: float, progress: Progress | None = None) -> np.ndarray:
    """Return a waveform (samples,) over the time that a network has learnt, times ``peak``."""
    sound = in_batches(predict, GridPoints((samples,)), 1, progress=progress)[:, 0]
    sound *= np.float32(peak)
    return sound


def sound_cost(samples: int, out: str | Path | None) -> Cost:
    """Return what a sound of so many samples takes, made, scored, drawn and written."""
    return Cost(12 * samples + 2**27, 0 if out is None else 2 * samples, (("matplotlib", "report"),))


@with_origin("audio", BUNDLED)
def audio_task(
    source: Any,
    *,
    rate: int | None = None,
    channel: int | Literal["mix"] = "mix",
    start: float = 0.0,
    seconds: float | None = None,
) -> AudioTask:
    """Make a task of a sound.

    A tone of f Hz has pi f times the sound's seconds radians in a unit of x, thousands often; a network has to
    begin with frequencies of that order (SIREN's paper takes 3000 for the first layer) to learn it.

    Args:
        source: a wav file of 8-, 16-, 24- or 32-bit integers or of floats; "chord" (three decaying notes with
            overtones) or "sweep" (60 Hz to 3 kHz), a second each at 8 kHz; or an array (n,) or (n, channels), of
            NumPy, JAX or lists.
        rate: samples a second; needed for an array. A file or a bundled sound of another rate is resampled to it.
        channel: "mix" takes the mean of all channels, a number only that one; the task's name says which.
        start: seconds to leave out at the beginning.
        seconds: how many to keep; None is all.

    Returns:
        :class:`AudioTask`.

    Raises:
        FileNotFoundError: no such file, and no bundled sound of that name.
        ValueError: not a wav file, or compressed or cut short; NaN; silence; no such channel; an array without a rate.

    Example:
        >>> task = audio_task("chord", seconds=0.25)
        >>> task.x.shape, task.y.shape, task.rate, task.metric
        ((2000, 1), (2000, 1), 8000, 'snr')

    Source: Sitzmann et al., "Implicit Neural Representations with Periodic Activation Functions" (NeurIPS 2020),
    arXiv 2006.09661.
    """
    if rate is not None:
        _checks.check_positive(rate, "rate", integer=True)
    _checks.check_positive(start, "start", least=0)
    name, recording = _load(source, rate)
    how, samples = recording.mixed(channel)
    first = round(start * recording.rate)
    last = None
    if seconds is not None:
        _checks.check_positive(seconds, "seconds")
        last = first + round(seconds * recording.rate)
    duration = len(samples) / recording.rate
    samples = samples[first:last]
    if len(samples) < 2:
        raise ValueError(f"{name} lasts {duration:g} s; start={start} and seconds={seconds} leave nothing of it.")
    if rate is not None and rate != recording.rate:
        import scipy.signal

        common = np.gcd(rate, recording.rate)
        samples = scipy.signal.resample_poly(samples.astype(np.float64), rate // common, recording.rate // common)
        how = ", ".join(filter(None, [how, f"resampled from {recording.rate} Hz"]))
    samples = samples.astype(np.float32)
    if not samples.any():
        hint = " Its channels cancel; choose one with channel=0." if recording.channels.any() and how else ""
        raise ValueError(f"{name} is silent there: there is nothing to fit.{hint}")
    return AudioTask(f"{name} ({how})" if how else name, rate or recording.rate, samples, recording.eight_bit)


def _load(source: Any, rate: int | None) -> tuple[str, Recording]:
    array = _checks.as_numpy(source, "sound")
    if array is not None:
        if rate is None:
            raise ValueError("an array has no rate of its own; pass rate=, in samples a second.")
        values = finite_floats(array, "sound")
        if array.dtype.kind != "f":
            raise TypeError(f"sound has dtype {array.dtype}; expected floats, of which full scale is [-1, 1].")
        if values.ndim not in (1, 2):
            raise ValueError(f"sound has shape {values.shape}; expected (n,) or (n, channels).")
        return "array", Recording(rate, values.reshape(len(values), -1))
    if name := bundled_name(source, BUNDLED):
        return name, Recording(_RATE, _generate(name)[:, None])
    path = existing_file(source, "sound", BUNDLED)
    return path.name, read_wav(path)


def _generate(name: str) -> np.ndarray:
    """Return a second at 8 kHz with a peak of 0.9."""
    t = np.arange(_RATE) / _RATE
    if name == "sweep":
        low, high = 60.0, 3000.0
        rise = np.log(high / low)
        return 0.9 * np.sin(2 * np.pi * low * (np.exp(rise * t) - 1) / rise)
    sound = np.zeros(_RATE)
    for note, delay in ((220.0, 0.0), (277.18, 0.12), (329.63, 0.24)):
        since = np.maximum(t - delay, 0)
        for overtone in range(1, 7):
            # Each overtone is weaker and dies faster, as on a plucked string.
            sound += np.sin(2 * np.pi * note * overtone * since) * np.exp(-(2 + 1.5 * overtone) * since) / overtone**1.5
    return 0.9 * sound / np.abs(sound).max()
