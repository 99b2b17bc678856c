"""One writer at a time in a folder of results."""

import errno
import fcntl
import pathlib
import subprocess
import sys
import threading
import time

import pytest

import ntk_inr as ni
from ntk_inr import _claims
from ntk_inr._claims import CLAIM, claimed
from ntk_inr._results import Record
from ntk_inr.study.record import results_folder

# Loads the one file, since all of the package takes seconds.
WAIT = f"""
import pathlib, runpy, sys, time
with runpy.run_path({_claims.__file__!r})["claimed"](pathlib.Path(sys.argv[1])):
    time.sleep(60)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A process that holds the claim to a folder."""
    with subprocess.Popen([sys.executable, "-c", WAIT, tmp_path]) as process:
        while not (tmp_path / CLAIM).exists() or not (tmp_path / CLAIM).read_text():
            assert process.poll() is None
            time.sleep(0.01)
        yield process
        process.kill()


def test_a_claim_ends_with_its_process(tmp_path, elsewhere):
    nothing = [Record()] * 3
    study, tuning = ni.study.Study(*nothing, None, []), ni.study.Tuning(*nothing, [])
    for save in (study.save, tuning.save):
        with pytest.raises(FileExistsError, match=rf"being written to by process {elsewhere.pid} on .*; wait until"):
            save(tmp_path)
        with pytest.raises(FileExistsError, match="being written to"):  # which is not for others to take away
            save(tmp_path, overwrite=True)
    elsewhere.kill()
    elsewhere.wait()
    assert (tmp_path / CLAIM).exists()
    assert study.save(tmp_path) == tmp_path / "results.json"  # as if the folder were empty
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_threads_take_turns(tmp_path):
    inside, most, entered = [], [], []

    def work():
        for _ in range(40):
            try:
                with claimed(tmp_path):
                    inside.append(1)
                    entered.append(1)
                    most.append(len(inside))
                    time.sleep(1e-4)
                    inside.pop()
            except FileExistsError:
                time.sleep(1e-4)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert entered
    assert not list(tmp_path.iterdir())


def test_a_claim_ends_with_an_error_and_spares_what_is_not_ours(tmp_path):
    with pytest.raises(KeyboardInterrupt), results_folder(tmp_path / "run"):
        raise KeyboardInterrupt
    assert not list((tmp_path / "run").iterdir())
    before = tmp_path.stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="not empty"), results_folder(tmp_path):
        pass
    assert tmp_path.stat().st_mtime_ns == before
    with results_folder(None) as folder:
        assert folder is None
    with pytest.raises(ValueError, match="resume=True needs out="), results_folder(None, resume=True):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"), claimed(tmp_path):
        assert not list(pathlib.Path(tmp_path).iterdir())
