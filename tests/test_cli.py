import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import ntk_inr as ni
from ntk_inr import __main__, cli, terminal
from ntk_inr.tasks.registry import TASKS, kind_of

FAST = ["--size", "8", "--features", "8", "--depth", "1", "--steps", "3", "--seeds", "1"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(unchecked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save("photo.png")


def test_compare_interrupted_then_resumed_then_reported(capsys, monkeypatch):
    """Into the folder that is named after the image."""
    original = terminal.Bars.__call__

    def press(self, what, done, total):
        original(self, what, done, total)
        if what == "pe: Adam":
            raise KeyboardInterrupt

    arguments = ["compare", "photo.png", *FAST, "--variants", "relu", "pe"]
    with monkeypatch.context() as patched:
        patched.setattr(terminal.Bars, "__call__", press)
        assert cli.run(arguments) == 130
    assert "1 of 2 networks are finished and kept in runs/photo" in capsys.readouterr().err
    assert cli.run([*arguments, "--resume"]) == 0
    assert [result.name for result in ni.load_study("runs/photo").variants] == ["relu", "pe"]
    printed = capsys.readouterr().out
    for expected in ("Conditioning at initialisation", "pe", "★", "Best PSNR after 3 steps of Adam: ", "report.html"):
        assert expected in printed
    page = pathlib.Path("runs/photo/report.html")
    first = page.read_text()
    page.unlink()
    assert cli.run(["report", "runs/photo", "--target", "3"]) == 0
    assert "as asked for" in page.read_text() != first


@pytest.mark.slow
def test_default_folder_is_named_after_the_image():
    assert cli.run(["compare", "photo.png", *FAST, "--variants", "relu"]) == 0
    assert ni.load_study("runs/photo").complete


def test_variants_are_a_line_each(capsys):
    assert cli.run(["variants"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ni.variants())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "missing.png"], "no file 'missing.png'"),
        (["compare", "camra"], "no bundled image of that name"),
        (["compare", "text.png"], "can't be read as an image"),
        (["compare", "pixel.png"], "has 1 pixel"),
        (["compare", "photo.png", "--variants", "sirne"], "Did you mean 'siren'?"),
        (["compare", "photo.png", "--steps", "0"], "steps is 0; expected at least 1"),
        (["compare", "photo.png", "--holdout", "2"], "holdout is 2.0"),
        (["compare", "photo.png", "--out", "full"], "exists and is not empty"),
        (["compare", "photo.png", "--out", "photo.png"], "is a file"),
        (["compare", "photo.png", "--out", "/proc/nowhere"], "can't write to '/proc/nowhere'"),
        (["compare", "photo.png", "--resume", "--overwrite"], "contradict"),
        (["compare", "nan.tiff"], "holds 64 NaN"),
        (["compare", "photo.png", "--learning-rate", "-1"], "learning_rate is -1.0"),
        pytest.param(
            ["compare", "photo.png", "--variants", "relu", "--learning-rate", "1e30"],
            "every network diverged",
            marks=pytest.mark.slow,
        ),
        (["compare", "photo.png", "--target", "nan"], "the target PSNR is nan"),
        (["compare", "photo.png", "--seed", "-1"], "seed is -1; expected at least 0"),
        (["compare", "pictures", "photo.png"], "unknown task 'pictures'"),
        (["compare", "photo.png", "--set", "sise=9"], "Did you mean 'size'?"),
        (["compare", "photo.png", "--set", "size"], "write name=value"),
        (["compare", "signal", "chirp", "--grey"], "unknown setting of signal 'size'"),
        (["compare", "a", "b", "c"], "expected [TASK] FILE, got a b c"),
        (["fit", "photo.png", "--variant", "sirne"], "Did you mean 'siren'?"),
        (["fit", "photo.png", "--optimizer", "adan_"], "unknown optimizer"),
        (["fit", "photo.png", "--out", "full"], "exists and is not empty"),
        pytest.param(["fit", "photo.png", "--learning-rate", "1e30"], "siren diverged", marks=pytest.mark.slow),
        (["fit", "missing.obj"], "missing.obj"),
        (["report", "nowhere"], "no results.json in 'nowhere'"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(capsys, tmp_path, arguments, message):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    PIL.Image.fromarray(np.zeros((1, 1), np.uint8)).save("pixel.png")
    PIL.Image.fromarray(np.full((8, 8), np.nan, np.float32)).save("nan.tiff")
    assert cli.run([*arguments, *(FAST if arguments[0] == "compare" and "--steps" not in arguments else [])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ntk-inr: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_fit_keeps_the_reconstruction_and_goes_on(capsys, tmp_path):
    small = ["--features", "8", "--depth", "1", "--steps", "3"]
    assert cli.run(["fit", "photo.png", *small]) == 0
    printed = capsys.readouterr().out
    assert "psnr: " in printed
    assert "runs/fit-photo/reconstruction.png" in printed
    with PIL.Image.open("runs/fit-photo/reconstruction.png") as picture:
        assert picture.size == (8, 8)
    assert cli.run(["fit", "photo.png", *small, "--resume"]) == 0
    assert cli.run(["fit", "signal", "chirp", *small, "--set", "samples=64", "--out", "chirp"]) == 0
    assert np.load("chirp/reconstruction.npy").shape == (64, 1)


def test_the_task_is_told_by_the_suffix_or_what_is_bundled():
    assert [kind_of(name) for name in ("a.wav", "b.OBJ", "c.npy", "d.jpeg", "camera", "unknown")] == [
        "audio", "shape", "volume", "image", "image", "image",
    ]  # fmt: skip
    for kind, entry in TASKS.items():
        assert {kind_of(name) for name in entry.bundled} <= {kind}


def test_tasks_are_listed_with_their_settings(capsys):
    assert cli.run(["tasks"]) == 0
    printed = capsys.readouterr().out
    for expected in ("tomography", "angles=60", "a mesh file, or sphere"):
        assert expected in printed


def test_wrong_options_and_help_do_not_raise(capsys):
    assert cli.run(["variants", "relu"]) == 2
    assert cli.run(["compare", "photo.png", "--stepz", "3"]) == 2
    assert cli.run(["compare", "--help"]) == 0
    assert "Example: ntk-inr compare photo.png" in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_before_anything_is_done(capsys, monkeypatch):
    monkeypatch.setattr(terminal.Bars, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.run(["compare", "photo.png", *FAST]) == 130
    assert "nothing was kept" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.delitem(sys.modules, "ntk_inr.cli")
    monkeypatch.delattr(ni, "cli")
    assert __main__.main() == 2
    assert 'pip install "ntk-inr[report]"' in capsys.readouterr().err


def test_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "ntk_inr", "variants"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "siren" in done.stdout
