"""Checkpoints: a run stopped in any way and resumed ends with the bits of one never stopped."""

import contextlib
import functools
import json
import os
import pathlib
import pty
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ntk_inr as ni
from ntk_inr._claims import claimed
from ntk_inr.training import loop, saver
from ntk_inr.training.checkpoint import program_digest, tree_digest
from tests.interrupted_worker import run as run_worker

WORKER = pathlib.Path(__file__).with_name("interrupted_worker.py")
ROOT = str(WORKER.parents[1])
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": ROOT}
ADAM = optax.adam(0.01)
STEPS, EVERY = 4000, 300


def killed(folder, seconds):
    """Start the worker and kill it ``seconds`` after its first new checkpoint begins to be written."""
    before = set(folder.iterdir()) if folder.exists() else set()
    command = [sys.executable, "-W", "error", WORKER, folder, str(STEPS), str(EVERY)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        until = time.monotonic() + 50
        while process.poll() is None and time.monotonic() < until:
            if folder.exists() and set(folder.iterdir()) - before:
                time.sleep(seconds)
                break
            time.sleep(0.01)
        process.kill()
        printed = process.communicate()[0]
    assert process.returncode in (0, -signal.SIGKILL), printed.decode()
    assert folder.exists(), printed.decode()


def same(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def everything(run):
    leaves = {f"params{i}": leaf for i, leaf in enumerate(jax.tree.leaves(run.params))}
    return leaves | {name: c for name, c in run.history.items() if name != "seconds"} | {"losses": run.losses}


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_gives_the_same_bits(tmp_path, kills):
    folder, moment = tmp_path / "run", random.Random(kills)
    for _ in range(kills):
        killed(folder, moment.uniform(0, 0.4))
    resumed, straight = run_worker(folder, STEPS, EVERY), run_worker(None, STEPS, EVERY)
    assert resumed.status == "finished"
    same(everything(resumed), everything(straight))
    assert len(list(folder.iterdir())) <= 2  # checkpoint_keep=2, and nothing half-written is left


def layer(params, x):
    return jnp.tanh(x @ params[0]) @ params[1]


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal():
    """A runner under ``nohup`` or in the background ignores some, and what a process ignores stays ignored."""
    before = {name: signal.signal(name, signal.SIG_DFL) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def problem(x):
    return layer, (jnp.ones((2, 4)), jnp.ones((4, 1))), x, jnp.sin(3 * x[:, :1])


def bits(run):
    return {"w": run.params[0], "v": run.params[1], "losses": run.losses, "loss": run.history["loss"]}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_run_and_the_same_call_goes_on(problem, tmp_path, name):
    before = signal.getsignal(getattr(signal, name))
    seen = []

    def progress(done, total, figures):
        seen.append(done)
        if len(seen) == 20:
            signal.raise_signal(getattr(signal, name))

    options = {"optimizer": ADAM, "steps": 60, "checkpoint": tmp_path / "run", "checkpoint_every": 7}
    stopped = ni.fit(*problem, progress=progress, **options)
    assert stopped.status == "interrupted"
    assert 0 < stopped.steps < 60
    assert stopped.history["step"][-1] == stopped.steps
    assert len(stopped.losses) == stopped.steps
    assert signal.getsignal(getattr(signal, name)) is before
    resumed, straight = ni.fit(*problem, **options), ni.fit(*problem, optimizer=ADAM, steps=60)
    assert resumed.status == "finished"
    same(bits(resumed), bits(straight))
    assert np.all(np.diff(resumed.history["seconds"]) >= 0)
    # Once more: nothing is left to do.
    again = ni.fit(*problem, **options)
    same(bits(again), bits(straight))
    assert again.history["seconds"][-1] == resumed.history["seconds"][-1]


def test_fused_calls_are_short_enough_to_see_a_signal(problem, tmp_path, monkeypatch):
    """At 2 ms a step and 20 ms a call, no call takes more than 10 steps, though reports are 60 steps apart."""
    calls, advance = [], loop.Run.advance

    def slow(run, state, start, stop):
        calls.append(stop - start)
        time.sleep(0.002 * (stop - start))
        return advance(run, state, start, stop)

    monkeypatch.setattr(loop.Run, "advance", slow)
    monkeypatch.setattr(saver, "_CALL_SECONDS", 0.02)
    ni.fit(*problem, optimizer=ADAM, steps=400, checkpoint=tmp_path / "run")
    assert 1 < max(calls) <= 10
    calls.clear()
    ni.fit(*problem, optimizer=ADAM, steps=400)
    assert max(calls) > 50


def test_in_a_thread_no_signal_is_touched(problem, tmp_path):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(ni.fit(*problem, optimizer=ADAM, steps=3, checkpoint=tmp_path / "run").status)
    )
    thread.start()
    thread.join()
    assert found == ["finished"]


def test_runs_that_ended_early_stay_ended(problem, tmp_path):
    target = ni.fit(*problem, optimizer=ADAM, steps=60).history["psnr"][15]
    for name, options in (("target", {"stop_at": target}), ("diverged", {"optimizer": optax.sgd(1e9)})):
        options = {"optimizer": ADAM, "steps": 60, "checkpoint": tmp_path / name, "checkpoint_every": 3, **options}
        one, two = ni.fit(*problem, **options), ni.fit(*problem, **options)
        assert one.status == two.status == {"target": "target reached", "diverged": "diverged"}[name]
        same(bits(one), bits(two))


def test_seeds_resume_together(x, tmp_path):
    def apply(params, x):
        return x @ params

    y, params = x[:, :1], jnp.stack([jnp.zeros((2, 1)), jnp.ones((2, 1))])
    apply = jax.tree_util.Partial(apply)
    options = {"optimizer": ADAM, "steps": 30, "checkpoint": tmp_path / "run", "checkpoint_every": 4}

    def stop(done, total, figures):
        if done >= 10:
            signal.raise_signal(signal.SIGINT)

    assert {run.status for run in ni.fit_seeds(apply, params, x, y, progress=stop, **options)} == {"interrupted"}
    resumed = ni.fit_seeds(apply, params, x, y, **options)
    straight = ni.fit_seeds(apply, params, x, y, optimizer=ADAM, steps=30)
    for one, other in zip(resumed, straight, strict=True):
        np.testing.assert_array_equal(one.params, other.params)
        np.testing.assert_array_equal(one.losses, other.losses)


def digests():
    """Of a program with functions and sets in its text, and of a structure with a set."""
    mesh = jax.make_mesh((1, 1, 1), ("a", "b", "c"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    spec = jax.sharding.PartitionSpec("a")
    model = jax.shard_map(jax.nn.relu, mesh=mesh, in_specs=spec, out_specs=spec)
    structure = jax.tree_util.Partial(functools.partial(jnp.sum, where=frozenset({"rows", "columns", "outputs"})))
    return program_digest(model, jnp.ones((2, 2))) + tree_digest(structure)


def test_digests_are_those_of_another_process_on_a_terminal():
    """With colours, another width, and other hashes of strings."""
    ours, theirs = pty.openpty()
    code = "from tests.test_checkpoints import digests; print('digest', digests())"
    environment = ENVIRONMENT | {"PYTHONHASHSEED": "7", "COLUMNS": "30", "FORCE_COLOR": "1", "TERM": "xterm"}
    environment |= {"PYTHONUTF8": "0", "LC_ALL": "C", "JAX_PPRINT_USE_COLOR": "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=theirs, cwd=ROOT):
        os.close(theirs)
        printed = b""
        with contextlib.suppress(OSError):  # the terminal's end
            while part := os.read(ours, 4096):
                printed += part
    os.close(ours)
    assert printed.split() == [b"digest", digests().encode()]


def finished(problem, folder, **options):
    return ni.fit(*problem, **{"optimizer": ADAM, "steps": 12, "checkpoint": folder, "checkpoint_every": 4, **options})


def test_a_folder_of_checkpoints_has_one_writer(problem, tmp_path):
    with claimed(tmp_path), pytest.raises(FileExistsError, match="is being written to by process"):
        finished(problem, tmp_path)
    assert finished(problem, tmp_path).status == "finished"
    assert all(path.name.startswith("step_") for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="is not UTF-8, as checkpoints need"):
        finished(problem, tmp_path / os.fsdecode(b"caf\xe9"))


def test_half_written_and_damaged_checkpoints_are_not_loaded(problem, tmp_path):
    folder = tmp_path / "run"
    good = finished(problem, folder)
    half = folder / "step_99.orbax-checkpoint-tmp"  # as orbax names what it has not completed
    (half / "d").mkdir(parents=True)
    newest = folder / "step_12"
    data = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="step_12 is damaged and not used"):
        again = finished(problem, folder)
    same(bits(again), bits(good))
    assert not half.exists()
    assert len(list(folder.glob("damaged_12_*"))) == 1
    assert newest.exists()


def test_other_runs_are_refused_and_left_as_they_are(problem, tmp_path):
    folder = tmp_path / "run"
    finished(problem, folder)
    (folder / "notes.txt").write_text("mine")
    content = sorted(folder.rglob("*"))
    apply, params, x, y = problem
    for other, named in (
        ({"problem": (apply, params, x, 2 * y)}, "data differ"),
        ({"problem": (apply, (params[0], 2 * params[1]), x, y)}, "parameters at the start"),
        ({"report_every": 3}, "settings"),
        ({"optimizer": optax.adam(0.02)}, "optimizer, its rate or its schedule differ"),
        ({"resume": False}, "this run, and resume=False"),
    ):
        with pytest.raises(FileExistsError, match=named):
            finished(**({"problem": problem, "folder": folder} | other))
    assert sorted(folder.rglob("*")) == content
    shutil.copytree(folder / "step_12" / "default", tmp_path / "old" / "step_12")  # where 0.1 had it
    with pytest.raises(FileExistsError, match=r"checkpoints that ntk_inr 0\.1 wrote"):
        finished(problem, tmp_path / "old")
    same(bits(finished(problem, tmp_path / "old", overwrite=True)), bits(finished(problem, folder)))
    (tmp_path / "kernel.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match=r"kernel\.jsonl' exists"):  # before anything is deleted
        finished(problem, folder, overwrite=True, recorder=ni.Recorder(4, jsonl=tmp_path / "kernel.jsonl"))
    assert sorted(folder.rglob("*")) == content
    fresh = finished((apply, params, x, 2 * y), folder, overwrite=True)
    same(bits(fresh), bits(finished((apply, params, x, 2 * y), folder)))
    assert (folder / "notes.txt").read_text() == "mine"


def test_numbers_of_numpy_are_kept_too(problem, tmp_path, unchecked):
    numbers = {"steps": np.int64(12), "data_range": np.float32(1.0)}
    same(bits(finished(problem, tmp_path / "run", **numbers)), bits(finished(problem, tmp_path / "run")))


def test_keep_bounds_the_disk(problem, tmp_path):
    finished(problem, tmp_path / "run", checkpoint_every=1, checkpoint_keep=2)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step_11", "step_12"]


def test_seconds_between_checkpoints(problem, tmp_path):
    finished(problem, tmp_path / "run", checkpoint_every=3600.0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step_0", "step_12"]


# Orbax forgets about a coroutine of what it could not write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_ends_clearly_with_the_last_good_checkpoint(problem, tmp_path):
    folder, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(done, total, figures):
        if done >= 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # no file may grow beyond 64 bytes

    try:
        with pytest.raises(OSError, match=r"could not write the checkpoint of step 8 .*last good one is of step 4"):
            finished(problem, folder, progress=full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # A thread of tensorstore may come back to what it could not write, until the next run takes that away.
    assert sorted(path.name for path in folder.iterdir() if "tmp" not in path.name) == ["step_0", "step_4"]
    same(bits(finished(problem, folder)), bits(ni.fit(*problem, optimizer=ADAM, steps=12)))
    assert not list(folder.glob("*tmp*"))


def test_a_file_in_place_of_the_folder(problem, tmp_path):
    (tmp_path / "run").write_text(json.dumps([]))
    with pytest.raises(NotADirectoryError, match="is a file; expected a folder"):
        finished(problem, tmp_path / "run")
