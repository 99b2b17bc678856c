"""Wav files of any usual sample format, read into [-1, 1]."""

from __future__ import annotations

import dataclasses
import io
import struct
from pathlib import Path

import numpy as np

from ntk_inr import _checks
from ntk_inr.tasks.files import existing_file, new_file, reading

_PART = 2**22
_UNKNOWN = 2**32 - 1
"""A length that the header does not tell."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """Sound as a file holds it.

    Attributes:
        rate: samples a second.
        channels: (n, channels) float64; full scale is [-1, 1].
        eight_bit: whether they came as integers of 8 bits.
    """

    rate: int
    channels: np.ndarray
    eight_bit: bool = False

    def mixed(self, channel: int | str) -> tuple[str, np.ndarray]:
        """Return what was done, in words ("" for a single channel), and one channel (n,)."""
        count = self.channels.shape[1]
        if channel == "mix":
            return ("", self.channels[:, 0]) if count == 1 else (f"{count} channels mixed", self.channels.mean(axis=1))
        if isinstance(channel, str) or not 0 <= channel < count:
            known = f"0 to {count - 1}" if count > 1 else "0"
            raise ValueError(f'channel is {channel!r}; expected "mix" or one of the file\'s channels, {known}.')
        return (f"channel {channel} of {count}" if count > 1 else ""), self.channels[:, channel]


def read_wav(source: str | Path) -> Recording:
    """Read 8-, 16-, 24- or 32-bit integers or 32- or 64-bit floats; say what is wrong with anything else."""
    import scipy.io.wavfile

    path = existing_file(source, "sound")
    hint = " Expected uncompressed PCM or float samples, whole; convert it with: ffmpeg -i FILE -c:a pcm_s16le out.wav"
    with reading(path, "a wav file", hint):
        rate, samples = scipy.io.wavfile.read(io.BytesIO(_plain(path.read_bytes())))
    samples = samples[:, None] if samples.ndim == 1 else samples
    if not samples.size or rate < 1:
        raise ValueError(f"{str(path)!r} holds {len(samples)} samples at {rate} Hz; expected some of both.")
    if samples.dtype == np.uint8:
        return Recording(rate, (samples.astype(np.float64) - 128) / 128, eight_bit=True)
    if np.issubdtype(samples.dtype, np.integer):
        return Recording(rate, samples / -float(np.iinfo(samples.dtype).min))  # 24 bits come in the top of 32
    _checks.check_finite(samples, str(path))
    return Recording(rate, samples.astype(np.float64))


def _plain(content: bytes) -> bytes:
    """Return a wav file of nothing but its format and its samples, of which the header tells the true length.

    What is streamed has no length in its header, or 0, and goes to the file's end; 64-bit files keep theirs elsewhere.
    """
    kind, order = content[:4], ">" if content[:4] == b"RIFX" else "<"
    if kind not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or content[8:12] != b"WAVE":
        raise ValueError("it does not begin with RIFF and WAVE")
    streamed = struct.unpack(order + "I", content[4:8])[0] in (0, _UNKNOWN)
    place, long, form = 12, 0, b""
    while place + 8 <= len(content):
        name, size = struct.unpack(f"{order}4sI", content[place : place + 8])
        chunk = content[place + 8 : place + 8 + size]
        if name == b"ds64" and len(chunk) >= 16:
            long = struct.unpack("<Q", chunk[8:16])[0]
        if name == b"fmt ":
            form = chunk
        if name == b"data":
            break
        place += 8 + size + size % 2
    else:
        raise ValueError("it ends before its samples")
    if len(form) < 16:
        raise ValueError("it has no format before its samples")
    frame = struct.unpack(order + "H", form[12:14])[0]
    if not (frame and any(form[2:4])):
        raise ValueError("its format has no channels, or samples without bits")
    samples = content[place + 8 :]
    size = long if size == _UNKNOWN and long else size
    if size == _UNKNOWN or (size == 0 and streamed):
        size = len(samples) // frame * frame
    if size > len(samples):
        raise ValueError(f"it ends after {len(samples)} of {size} bytes of samples")
    if size + len(form) > _UNKNOWN - 64:
        raise ValueError("it has more than 4 GiB of samples; cut it")
    parts = [
        struct.pack(f"{order}4sI", name, len(part)) + part
        for name, part in ((b"fmt ", form), (b"data", samples[:size]))
    ]
    whole = b"WAVE" + b"".join(parts)
    return struct.pack(f"{order}4sI", b"RIFX" if order == ">" else b"RIFF", len(whole)) + whole


def write_wav(path: str | Path, rate: int, samples: np.ndarray, *, overwrite: bool = False) -> Path:
    """Write samples (n,) in [-1, 1], clipped to it, as 16-bit PCM, which every player opens; return the path."""
    import scipy.io.wavfile

    with new_file(path, (".wav",), overwrite=overwrite) as written:
        pcm = np.empty(len(samples), np.int16)
        for start in range(0, len(samples), _PART):
            part = samples[start : start + _PART]
            pcm[start : start + _PART] = np.clip(np.round(np.nan_to_num(part) * 32768), -32768, 32767)
        scipy.io.wavfile.write(written, rate, pcm)
    return Path(path)
