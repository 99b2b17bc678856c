"""Wav files of any usual sample format, read into [-1, 1]."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ntk_inr import _checks
from ntk_inr.tasks.files import existing_file, nan_message, new_file


@dataclasses.dataclass(frozen=True)
class Recording:
    """Sound as a file holds it.

    Attributes:
        rate: samples a second.
        channels: (n, channels) float64; full scale is [-1, 1].
    """

    rate: int
    channels: np.ndarray

    def mixed(self, channel: int | str) -> tuple[str, np.ndarray]:
        """Return what was done, in words ("" for a single channel), and one channel (n,)."""
        count = self.channels.shape[1]
        if channel == "mix":
            return ("", self.channels[:, 0]) if count == 1 else (f"{count} channels mixed", self.channels.mean(axis=1))
        if isinstance(channel, str) or not 0 <= channel < count:
            known = f"0 to {count - 1}" if count > 1 else "0"
            raise ValueError(f'channel is {channel!r}; expected "mix" or one of the file\'s channels, {known}.')
        return (f"channel {channel} of {count}" if count > 1 else ""), self.channels[:, channel]


def read_wav(source: str | Path, bundled: Sequence[str] = ()) -> Recording:
    """Read 8-, 16-, 24- or 32-bit integers or 32- or 64-bit floats; say what is wrong with anything else."""
    import scipy.io.wavfile

    path = existing_file(source, "sound", bundled)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Chunks of other programs (tags, markers) are skipped; a file cut short is not.
            warnings.filterwarnings("ignore", message="Chunk .* not understood|Incomplete chunk ID")
            rate, samples = scipy.io.wavfile.read(path)
    except (ValueError, EOFError, OSError, scipy.io.wavfile.WavFileWarning) as error:
        raise ValueError(
            f"{str(path)!r} can't be read as a wav file ({error}). Expected uncompressed PCM or float samples, whole; "
            "convert it with: ffmpeg -i FILE -c:a pcm_s16le out.wav"
        ) from error
    samples = samples[:, None] if samples.ndim == 1 else samples
    if not samples.size or rate < 1:
        raise ValueError(f"{str(path)!r} holds {len(samples)} samples at {rate} Hz; expected some of both.")
    if samples.dtype == np.uint8:
        return Recording(rate, (samples.astype(np.float64) - 128) / 128)
    if np.issubdtype(samples.dtype, np.integer):
        return Recording(rate, samples / -float(np.iinfo(samples.dtype).min))  # 24 bits come in the top of 32
    _checks.refuse_if(bad := int((~np.isfinite(samples)).sum()), nan_message(str(path), bad, samples.size))
    return Recording(rate, samples.astype(np.float64))


def write_wav(path: str | Path, rate: int, samples: np.ndarray, *, overwrite: bool = False) -> Path:
    """Write samples (n,) in [-1, 1], clipped to it, as 16-bit PCM, which every player opens; return the path."""
    import scipy.io.wavfile

    with new_file(path, (".wav",), overwrite=overwrite) as written:
        scipy.io.wavfile.write(written, rate, np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16))
    return Path(path)
