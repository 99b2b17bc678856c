"""The recorder: figures of the kernel of that moment, a file that loses nothing and overwrites nothing."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_inr as ni
from ntk_inr.training.recorder import Recorder

ADAM = optax.adam(1e-2)


def layer(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


@pytest.fixture
def problem(key, x):
    first, second = jax.random.split(key)
    params = jax.random.normal(first, (2, 16)), jax.random.normal(second, (16, 1))
    return layer, params, x, jnp.sin(3 * x[:, :1])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_of_the_kernel_at_that_step(problem, tmp_path):
    apply, params, x, y = problem
    recorder = Recorder(points=23, top=4, jsonl=tmp_path / "deep" / "history.jsonl")
    run = ni.fit(*problem, optimizer=ADAM, steps=11, recorder=recorder)
    history = recorder.history
    assert history["step"].tolist() == [0, 1, 2, 4, 8, 11]
    first = ni.ntk(apply, params, x)
    for at, trained in ((0, params), (-1, run.params)):
        kernel = ni.ntk(apply, trained, x)
        np.testing.assert_allclose(history["ntk_cv"][at], ni.moments(kernel).cv, rtol=1e-4)
        np.testing.assert_allclose(history["eigenvalues"][at], ni.spectra.eigensystem(kernel).values[:4], rtol=1e-3)
        drift = np.linalg.norm(kernel - first) / np.linalg.norm(first)
        np.testing.assert_allclose(history["drift"][at], drift, rtol=1e-3, atol=1e-6)
        for name, vectors in (("target", y), ("residual", apply(trained, x) - y)):
            shares = ni.alignment(kernel, vectors).energy[:4]
            np.testing.assert_allclose(history[f"{name}_alignment"][at], shares, rtol=0.02, atol=1e-4)
    assert history["drift"][-1] > 1e-3
    # The steps pause for records and reports; the training is the same.
    np.testing.assert_array_equal(run.losses, ni.fit(*problem, optimizer=ADAM, steps=11).losses)

    written = lines(tmp_path / "deep" / "history.jsonl")
    assert written[0] | {"event": "start", "points": 23, "steps": 11} == written[0]
    reports = [line for line in written if line["event"] == "report"]
    np.testing.assert_allclose([line["loss"] for line in reports], run.history["loss"])
    assert [line["step"] for line in written if line["event"] == "kernel"] == history["step"].tolist()


def test_lines_are_there_as_soon_as_they_are_known(problem, tmp_path):
    path, seen, recorder = tmp_path / "h.jsonl", [], Recorder(points=5, every=4, jsonl=tmp_path / "h.jsonl")
    ni.fit(
        *problem, optimizer=ADAM, steps=11, recorder=recorder,
        progress=lambda done, total, figures: seen.append((done, lines(path)[-1]["step"])),
    )  # fmt: skip
    assert all(done == written for done, written in seen)
    assert recorder.history["step"].tolist() == [0, 4, 8, 11]
    assert recorder.history["eigenvalues"].shape == (4, 5)


def test_a_file_that_exists_is_kept(problem, tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text("mine\n")
    with pytest.raises(FileExistsError, match="choose another file"):
        ni.fit(*problem, optimizer=ADAM, steps=11, recorder=Recorder(points=5, jsonl=path))
    assert path.read_text() == "mine\n"
    ni.fit(*problem, optimizer=ADAM, steps=11, recorder=Recorder(points=5, jsonl=path, overwrite=True))
    assert lines(path)[0]["event"] == "start"


def test_a_file_that_another_run_makes_meanwhile_is_kept(problem, tmp_path):
    class Overtaken(Recorder):
        def begin(self, *given):
            super().begin(*given)
            self.jsonl.write_text("theirs\n")

    path = tmp_path / "h.jsonl"
    with pytest.raises(FileExistsError, match=r"h\.jsonl"):
        ni.fit(*problem, optimizer=ADAM, steps=11, recorder=Overtaken(points=5, jsonl=path))
    assert path.read_text() == "theirs\n"


def test_a_resumed_run_goes_on_in_its_file(problem, tmp_path):
    path = tmp_path / "h.jsonl"
    options = {"optimizer": ADAM, "steps": 11, "checkpoint": tmp_path / "run", "checkpoint_every": 3}

    def progress(done, total, figures):
        if done >= 6:
            signal.raise_signal(signal.SIGTERM)

    stopped = ni.fit(*problem, recorder=Recorder(points=5, jsonl=path), progress=progress, **options)
    assert stopped.status == "interrupted"
    with path.open("a") as file:  # as if killed later, in the middle of a line
        file.write('{"event": "kernel", "step": 8}\n{"event": "ker')
    resumed = Recorder(points=5, jsonl=path)
    ni.fit(*problem, recorder=resumed, **options)
    straight = Recorder(points=5, jsonl=tmp_path / "straight.jsonl")
    ni.fit(*problem, optimizer=ADAM, steps=11, recorder=straight)
    for name, column in straight.history.items():
        np.testing.assert_array_equal(resumed.history[name], column, err_msg=name)
    one, two = ([line | {"run": 0, "seconds": 0} for line in lines(p)] for p in (path, tmp_path / "straight.jsonl"))
    assert one == two

    other = tmp_path / "other.jsonl"
    other.write_text('{"event": "start", "run": "another"}\n')
    with pytest.raises(FileExistsError, match="of another run than the checkpoint"):
        ni.fit(*problem, recorder=Recorder(points=5, jsonl=other), **options)
    with pytest.raises(FileExistsError, match="settings differ"):
        ni.fit(*problem, recorder=Recorder(points=6), **options)


def test_tensorboard_gets_the_numbers(problem, tmp_path):
    pytest.importorskip("tensorboardX")
    ni.fit(*problem, optimizer=ADAM, steps=11, recorder=Recorder(points=5, tensorboard=tmp_path / "board"))
    content = b"".join(path.read_bytes() for path in (tmp_path / "board").iterdir())
    assert all(tag in content for tag in (b"ntk_cv", b"eigenvalues/0", b"drift", b"loss"))


def test_a_perfect_fit_has_no_residual_to_share(x):
    recorder = Recorder(points=5, top=2)
    ni.fit(lambda p, x: x @ p, jnp.ones((2, 1)), x, x @ jnp.ones((2, 1)), steps=1, recorder=recorder)
    assert recorder.history["residual_alignment"][0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda: Recorder(points=-1), ValueError, "points is -1"),
        (lambda: Recorder(every=0), ValueError, "every is 0"),
        (lambda: Recorder(top=0), ValueError, "top is 0"),
        (lambda: ni.fit(lambda p, x: x, np.ones(1), np.ones((2, 1)), np.ones((2, 1)), recorder="h.jsonl"),
         TypeError, r"expected a ni.Recorder\("),
        (lambda: ni.fit_seeds(lambda p, x: x, np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 1)), recorder=Recorder()),
         ValueError, "recorder= follows one network"),
    ],
)  # fmt: skip
def test_bad_recorders(unchecked, change, error, message):
    with pytest.raises(error, match=message):
        change()
