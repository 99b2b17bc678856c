import struct

import numpy as np
import pytest
import scipy.io.wavfile

from ntk_inr.study.description import eight_bits
from ntk_inr.tasks.audio import audio_task
from ntk_inr.tasks.signal import signal_task
from ntk_inr.tasks.wav import read_wav, write_wav

RATE = 8000


@pytest.fixture
def sine():
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(800) / RATE)


def write_24_bit(path, channels):
    """By hand, since scipy reads 24 bits but does not write them."""
    whole = np.round(channels * 2**23).astype("<i4")
    data = whole.reshape(-1, 1).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    count = channels.shape[1]
    form = struct.pack("<HHIIHH", 1, count, RATE, RATE * 3 * count, 3 * count, 24)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


FORMATS = {
    "u8": lambda s: np.round(s * 128 + 128).astype(np.uint8),
    "i16": lambda s: np.round(s * 2**15).astype(np.int16),
    "i32": lambda s: np.round(s * 2**31).astype(np.int32),
    "f32": lambda s: s.astype(np.float32),
    "f64": lambda s: s,
}


@pytest.mark.parametrize(("name", "atol"), [("u8", 4e-3), ("i16", 2e-5), ("i32", 1e-9), ("f32", 1e-7), ("f64", 0)])
def test_sample_formats(tmp_path, sine, name, atol):
    scipy.io.wavfile.write(tmp_path / "s.wav", RATE, FORMATS[name](sine))
    found = read_wav(tmp_path / "s.wav")
    assert found.rate == RATE
    np.testing.assert_allclose(found.channels[:, 0], sine, atol=atol)
    # PSNR above 60 dB is no property of what came in 8 bits.
    np.save(tmp_path / "s.npy", FORMATS[name](sine))
    for task in (audio_task(tmp_path / "s.wav"), *map(signal_task, (tmp_path / "s.wav", tmp_path / "s.npy"))):
        assert eight_bits(task) == {"eight_bit": name == "u8", "eight_bit_curves": name == "u8"}


def test_24_bit_stereo(tmp_path, sine):
    stereo = np.stack([sine, -sine / 2], axis=1)
    write_24_bit(tmp_path / "s.wav", stereo)
    np.testing.assert_allclose(read_wav(tmp_path / "s.wav").channels, stereo, atol=1e-7)
    mixed = audio_task(tmp_path / "s.wav")
    assert mixed.name == "s.wav (2 channels mixed)"
    np.testing.assert_allclose(mixed.samples, sine / 4, atol=1e-6)
    right = audio_task(tmp_path / "s.wav", channel=1)
    assert right.name == "s.wav (channel 1 of 2)"
    np.testing.assert_allclose(right.samples, -sine / 2, atol=1e-6)
    assert signal_task(tmp_path / "s.wav").name == "s.wav (2 channels mixed)"
    with pytest.raises(ValueError, match="0 to 1"):
        audio_task(tmp_path / "s.wav", channel=2)


def test_wav_files_that_are_refused(tmp_path, sine):
    good = tmp_path / "good.wav"
    write_wav(good, RATE, sine)
    whole = good.read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-100])
    (tmp_path / "text.wav").write_text("hello")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "alaw.wav").write_bytes(whole[:20] + struct.pack("<H", 6) + whole[22:])
    scipy.io.wavfile.write(tmp_path / "nan.wav", RATE, np.full(10, np.nan, np.float32))
    for name, message in [
        ("cut", "can't be read"),
        ("text", "can't be read"),
        ("empty", "0 bytes"),
        ("alaw", "ffmpeg"),
        ("nan", "10 NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            audio_task(tmp_path / f"{name}.wav")
    with pytest.raises(FileNotFoundError, match="no bundled sound"):
        audio_task("chrod")


FORM = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
SAMPLES = np.arange(-50, 50, dtype="<i2").tobytes()
UNKNOWN = 2**32 - 1
SIZES_64 = struct.pack("<4sIQQQI", b"ds64", 28, 272, len(SAMPLES), 100, 0)


def riff(*chunks, size=None, kind=b"RIFF"):
    body = b"WAVE" + b"".join(chunks)
    return kind + struct.pack("<I", len(body) if size is None else size) + body


def chunk(name, content, size=None):
    return struct.pack("<4sI", name, len(content) if size is None else size) + content


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (riff(FORM, chunk(b"data", SAMPLES, UNKNOWN), size=UNKNOWN), 100),  # streamed
        (riff(FORM, chunk(b"data", SAMPLES, 0), size=0), 100),
        (riff(FORM, chunk(b"data", SAMPLES + b"!", UNKNOWN)), 100),  # streamed, and cut in a sample
        (riff(chunk(b"odd ", b"tag") + b"\0", FORM, chunk(b"data", SAMPLES), chunk(b"LIST", b"tags")), 100),
        (riff(FORM, chunk(b"data", SAMPLES), b"rest"), 100),
        (riff(SIZES_64, FORM, chunk(b"data", SAMPLES, UNKNOWN), b"LIST", size=UNKNOWN, kind=b"RF64"), 100),
        (riff(FORM, chunk(b"data", SAMPLES[:40], 200)), "ends after 40 of 200 bytes"),
        (riff(FORM), "ends before its samples"),
        (riff(FORM, b"dat"), "ends before its samples"),
        (riff(FORM[:20]), "ends before its samples"),
        (riff(chunk(b"data", SAMPLES)), "no format"),
        (riff(chunk(b"fmt ", FORM[8:16]), chunk(b"data", SAMPLES)), "no format"),
        (riff(FORM[:10] + b"\0\0" + FORM[12:], chunk(b"data", SAMPLES)), "no channels"),
        (riff(FORM[:8] + b"\3\0" + FORM[10:22] + b"\7\0", chunk(b"data", SAMPLES)), "can't be read as a wav file"),
        (riff(FORM, chunk(b"data", b"")), "0 samples"),
        (riff(FORM, chunk(b"data", SAMPLES))[:10], "RIFF and WAVE"),
    ],
)
def test_headers_tell_the_samples_or_are_refused(tmp_path, content, read):
    (tmp_path / "s.wav").write_bytes(content)
    if isinstance(read, int):
        channels = read_wav(tmp_path / "s.wav").channels
        np.testing.assert_array_equal(channels[:, 0] * 2**15, np.arange(read) - 50)
        return
    for task in (audio_task, signal_task):
        with pytest.raises(ValueError, match=f"s.wav.*{read}"):
            task(tmp_path / "s.wav")


def test_tags_of_other_programs_are_skipped(tmp_path, sine):
    write_wav(tmp_path / "s.wav", RATE, sine)
    whole = (tmp_path / "s.wav").read_bytes() + b"id3 " + struct.pack("<I", 4) + b"tags"
    (tmp_path / "s.wav").write_bytes(whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:])
    assert len(read_wav(tmp_path / "s.wav").channels) == 800


def test_the_reconstruction_is_a_wav_file(tmp_path, sine):
    task = audio_task(sine, rate=RATE)
    assert task.y.max() == 1.0
    lookup = dict(zip(task.x[:, 0].tolist(), task.y[:, 0].tolist(), strict=True))
    found = task.reconstruct(lambda x: np.array([[lookup[t]] for t in x[:, 0].tolist()]))
    assert task.scores(found)["snr"] > 120
    path = task.save(found, tmp_path / "out" / "again.wav")
    rate, samples = scipy.io.wavfile.read(path)
    assert rate == RATE
    np.testing.assert_allclose(samples / 2**15, sine, atol=2e-5)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        task.save(found, path)
    task.save(found, path, overwrite=True)
    with pytest.raises(ValueError, match=r"\.wav"):
        task.save(found, tmp_path / "out.mp3")


def test_bundled_sounds_parts_and_rates():
    whole = audio_task("chord")
    part = audio_task("chord", start=0.25, seconds=0.5)
    np.testing.assert_array_equal(part.samples, whole.samples[2000:6000])
    np.testing.assert_allclose(np.abs(audio_task("sweep").samples).max(), 0.9, rtol=1e-3)
    slow = audio_task("chord", rate=4000)
    assert slow.rate == 4000
    assert "resampled from 8000 Hz" in slow.name
    # Below half the new rate the sound stays what it was.
    assert np.sqrt(np.mean((slow.samples - whole.samples[::2]) ** 2)) < 0.005


@pytest.mark.parametrize(
    ("array", "options", "error", "message"),
    [
        (np.ones(9), {}, ValueError, "pass rate="),
        (np.ones(9, np.int16), {"rate": 8}, TypeError, "expected floats"),
        (np.full(9, np.nan), {"rate": 8}, ValueError, "9 NaN"),
        (np.zeros(9), {"rate": 8}, ValueError, "silent"),
        (np.stack([np.ones(9), -np.ones(9)], 1), {"rate": 8}, ValueError, "channels cancel"),
        (np.ones(9), {"rate": 8, "start": 2.0}, ValueError, "leave nothing"),
        (np.ones((3, 3, 3)), {"rate": 8}, ValueError, "expected \\(n,\\)"),
    ],
)
def test_arrays_that_are_no_sound(array, options, error, message):
    with pytest.raises(error, match=message):
        audio_task(array, **options)


def test_sines_hold_their_frequencies():
    task = signal_task("sines", samples=256, frequencies=(3, 20))
    power = np.abs(np.fft.rfft(task.signal[:, 0]))
    assert sorted(np.argsort(power)[-2:]) == [3, 20]
    assert (task.y.min(), task.y.max()) == (-1.0, 1.0)


def test_a_chirp_rises_and_steps_are_flat():
    chirp = signal_task("chirp", samples=4096, frequencies=(2, 40)).signal[:, 0]
    crossings = np.flatnonzero(np.diff(np.sign(chirp))) / 4096
    gaps = np.diff(crossings)
    assert gaps[0] > 5 * gaps[-1]
    assert len(np.unique(signal_task("steps").signal)) == 9


def test_signals_come_back_in_their_own_unit():
    signal = np.array([[200.0, 3.0], [400.0, 3.0], [100.0, 3.0]])
    task = signal_task(signal)
    assert (task.y.min(), task.y.max()) == (-1.0, 1.0)
    np.testing.assert_allclose(task.reconstruct(lambda x: task.y), signal, rtol=1e-5)
    # An error of a tenth of the span is 20 dB.
    np.testing.assert_allclose(task.scores(task.signal + 0.1 * 397)["psnr"], 20, atol=1e-4)
    assert signal_task(np.full(8, 5.0)).y.max() == 0.0
    # Far from zero float32 would leave nothing of it.
    wave = np.sin(np.linspace(0, 6, 50))
    np.testing.assert_allclose(signal_task(1e8 + wave).y, signal_task(wave).y, atol=1e-6)


def test_held_out_samples():
    task = signal_task("sines", samples=100, holdout=0.3)
    assert len(task.x) == 70
    assert len(task.heldout[0]) == 30
    assert set(task.scores(task.signal)) == {"psnr", "heldout_psnr"}


def test_signal_files(tmp_path, sine):
    np.save(tmp_path / "s.npy", sine)
    write_wav(tmp_path / "s.wav", RATE, sine)
    np.testing.assert_allclose(signal_task(tmp_path / "s.npy").y, signal_task(tmp_path / "s.wav").y, atol=1e-4)
    (tmp_path / "s.txt").write_text("1")
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    for name, message in [("s.txt", "expected .wav or .npy"), ("o.npy", "can't be read as a NumPy array")]:
        with pytest.raises(ValueError, match=message):
            signal_task(tmp_path / name)
    table = np.loadtxt(signal_task(sine).save(sine[:, None], tmp_path / "t.csv"), delimiter=",", skiprows=1)
    np.testing.assert_allclose(table[:, 1], sine, atol=1e-8)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("sines", {"frequencies": (300,)}, "needs more than 600 samples"),
        ("sines", {"frequencies": (0,)}, "expected numbers above 0"),
        (np.array([1.0, np.nan]), {}, "1 NaN"),
        (np.ones((2, 2, 2)), {}, "expected \\(n,\\)"),
        (np.ones(1), {}, "at least two samples"),
    ],
)
def test_bad_signals(source, options, message):
    with pytest.raises(ValueError, match=message):
        signal_task(source, **options)
