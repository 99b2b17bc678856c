"""Wav files of any usual sample format, read into [-1, 1]."""

from __future__ import annotations

import dataclasses
import io
import mmap
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ntk_inr import _checks
from ntk_inr.tasks.files import existing_file, new_file, reading

# Samples that are read or written at a time.
_PART = 2**22
_UNKNOWN = 2**32 - 1
"""A length that the header does not tell."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """Sound as a file holds it.

    Attributes:
        rate: samples a second.
        channels: (n, channels) float32, or float64 where that is more exact; full scale is [-1, 1].
        eight_bit: whether they came as integers of 8 bits.
    """

    rate: int
    channels: np.ndarray
    eight_bit: bool = False

    def mixed(self, channel: int | str) -> tuple[str, np.ndarray]:
        """Return what was done, in words ("" for a single channel), and one channel (n,)."""
        count = self.channels.shape[1]
        if channel == "mix":
            return (
                ("", self.channels[:, 0])
                if count == 1
                else (f"{count} channels mixed", self.channels.mean(axis=1, dtype=np.float64))
            )
        if isinstance(channel, str) or not 0 <= channel < count:
            known = f"0 to {count - 1}" if count > 1 else "0"
            raise ValueError(f'channel is {channel!r}; expected "mix" or one of the file\'s channels, {known}.')
        return (f"channel {channel} of {count}" if count > 1 else ""), self.channels[:, channel]


def read_wav(source: str | Path) -> Recording:
    """Read 8-, 16-, 24- or 32-bit integers or 32- or 64-bit floats; say what is wrong with anything else."""
    path = existing_file(source, "sound")
    hint = " Expected uncompressed PCM or float samples, whole; convert it with: ffmpeg -i FILE -c:a pcm_s16le out.wav"
    with (
        reading(path, "a wav file", hint),
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        rate, channels, eight_bit = _decoded(content, _layout(content))
    if not channels.size or rate < 1:
        raise ValueError(f"{str(path)!r} holds {len(channels)} samples at {rate} Hz; expected some of both.")
    if channels.dtype.kind == "f":
        _checks.check_finite(channels, str(path))
    return Recording(rate, channels, eight_bit)


class _Layout(NamedTuple):
    """Where a wav file has what: byte order, the content of its format chunk, and its samples' first byte and size."""

    order: str
    form: bytes
    first: int
    size: int


def _decoded(content: mmap.mmap, layout: _Layout) -> tuple[int, np.ndarray, bool]:
    """Return rate, samples (n, channels) of which full scale is [-1, 1], and whether they are of 8 bits.

    The file is decoded part by part; numbers of up to 16 bits and 32-bit floats are exact in float32.
    """
    import scipy.io.wavfile

    frame = struct.unpack(layout.order + "H", layout.form[12:14])[0]
    frames, channels, rate = layout.size // frame, None, 0
    for start in range(0, max(frames, 1), _PART):
        first = layout.first + start * frame
        # The last part has what is left of the file, also bytes that are no whole frame, for scipy to judge.
        last = layout.first + (layout.size if start + _PART >= frames else (start + _PART) * frame)
        rate, part = scipy.io.wavfile.read(io.BytesIO(_plain(layout, content[first:last])))
        part = part[:, None] if part.ndim == 1 else part
        if channels is None:
            kept = np.float64 if part.dtype in (np.int32, np.int64, np.float64) else np.float32
            channels, stored = np.empty((max(frames, len(part)), part.shape[1]), kept), part.dtype
        values = channels[start : start + len(part)]
        values[...] = part
        if stored == np.uint8:
            values -= 128
            values /= 128
        elif stored.kind in "iu":
            values /= -float(np.iinfo(stored).min)  # 24 bits come in the top of 32
    assert channels is not None
    return rate, channels, stored == np.uint8


def _layout(content: mmap.mmap) -> _Layout:
    """Return where a file has its format and its samples, of which the header tells the length, or the file's end.

    What is streamed has no length in its header, or 0, and goes to the file's end; 64-bit files keep theirs elsewhere.
    """
    kind, order = content[:4], ">" if content[:4] == b"RIFX" else "<"
    if kind not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or content[8:12] != b"WAVE":
        raise ValueError("it does not begin with RIFF and WAVE")
    streamed = struct.unpack(order + "I", content[4:8])[0] in (0, _UNKNOWN)
    place, long, form = 12, 0, b""
    while place + 8 <= len(content):
        name, size = struct.unpack(f"{order}4sI", content[place : place + 8])
        if name == b"ds64" and size >= 16 and place + 24 <= len(content):
            long = struct.unpack("<Q", content[place + 16 : place + 24])[0]
        if name == b"fmt ":
            form = content[place + 8 : place + 8 + size]
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
    there = len(content) - place - 8
    size = long if size == _UNKNOWN and long else size
    if size == _UNKNOWN or (size == 0 and streamed):
        size = there // frame * frame
    if size > there:
        raise ValueError(f"it ends after {there} of {size} bytes of samples")
    if size + len(form) > _UNKNOWN - 64:
        raise ValueError("it has more than 4 GiB of samples; cut it")
    return _Layout(order, form, place + 8, size)


def _plain(layout: _Layout, samples: bytes) -> bytes:
    """Return a wav file of nothing but its format and some of its samples."""
    parts = [
        struct.pack(f"{layout.order}4sI", name, len(part)) + part
        for name, part in ((b"fmt ", layout.form), (b"data", samples))
    ]
    whole = b"WAVE" + b"".join(parts)
    return struct.pack(f"{layout.order}4sI", b"RIFX" if layout.order == ">" else b"RIFF", len(whole)) + whole


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
