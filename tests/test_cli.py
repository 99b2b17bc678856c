import inspect
import io
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import zlib

import jax
import numpy as np
import PIL.Image
import pytest

import ntk_inr as ni
from ntk_inr import __main__, arguments, cli, compilation_cache, terminal
from ntk_inr._claims import claimed
from ntk_inr._results import Record
from ntk_inr.kernels import memory
from ntk_inr.messages import in_options, output
from ntk_inr.study.record import Study
from ntk_inr.study.summary import Summary
from ntk_inr.study.table import Column
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
        if what == "pe: adam":
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
    assert cli.run(["compare", "photo.png", *FAST, "--variant", "relu"]) == 0
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
        (["compare", "photo.png", "--variant", "sirne"], "Did you mean 'siren'?"),
        (["compare", "photo.png", "--steps", "0"], "error: --steps is 0; expected at least 1"),
        (["compare", "photo.png", "--holdout", "2"], "holdout is 2.0"),
        (["compare", "photo.png", "--out", "full"], "exists and is not empty"),
        (["compare", "photo.png", "--out", "photo.png"], "is a file"),
        (["compare", "photo.png", "--out", "/proc/nowhere"], "can't write to '/proc/nowhere'"),
        (["compare", "photo.png", "--resume", "--overwrite"], "--overwrite and --resume contradict each other"),
        (["compare", "nan.tiff"], "holds 64 NaN"),
        (["compare", "photo.png", "--learning-rate", "-1"], "--learning-rate is -1.0"),
        (["compare", "photo.png", "--kernel-points", "10000000", "--set", "size=4000"], "--kernel-points 64 asks"),
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
        (["fit", "photo.png", "--out", "full"], "continue it with --resume, replace it with --overwrite"),
        (["fit", "photo.png", "--optimizer", "lbfgs", "--schedule", "cosine"], "give --learning-rate to go without"),
        (["fit", "photo.png", "--steps", "0", "--schedule", "cosine"], "--steps is 0; expected at least 1"),
        (["fit", "signal", "sines", "--set", "samples=70000", "--optimizer", "lbfgs"], "--optimizer lbfgs compares"),
        (["fit", "signal", "chirp", "--set", "samples=8"], "got --set samples=8"),
        (["compare", "photo.png", "--out", "taken"], "'taken' is being written to by process"),
        (["fit", "photo.png", "--out", "taken"], "'taken' is being written to by process"),
        (["tune", "photo.png", "--out", "taken"], "wait until that has ended, or choose another folder"),
        (["tune", "photo.png", "--for", "speed"], "--for speed counts steps to a target; give --target, in dB"),
        (["tune", "photo.png", "--for", "speed", "--target", "nan"], "--target is nan; expected dB"),
        (["tune", "photo.png", "--sample", "100"], "--sample is 100, but photo.png has only 64 rows"),
        (["tune", "photo.png", "--sample", "2"], "take --for fit, or a larger sample"),
        (["tune", "photo.png", "--pilot", "5", "--infinite"], "--infinite and --pilot 5 exclude each other"),
        (["tune", "photo.png", "--pilot", "500"], "--pilot is 500 and --steps is 500"),
        (["tune", "photo.png", "--over", "scale=8:0.5"], "--over scale is (8, 0.5), which is reversed"),
        pytest.param(["fit", "photo.png", "--learning-rate", "1e30"], "siren diverged", marks=pytest.mark.slow),
        (["fit", "missing.obj"], "missing.obj"),
        (["report", "nowhere"], "no results.json in 'nowhere'"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    PIL.Image.fromarray(np.zeros((1, 1), np.uint8)).save("pixel.png")
    PIL.Image.fromarray(np.full((8, 8), np.nan, np.float32)).save("nan.tiff")
    (tmp_path / "taken").mkdir()
    if "--kernel-points" in arguments:
        monkeypatch.setattr(memory, "available_on_host", lambda: 3 * 8 * 64**2 - 1)
    with claimed(tmp_path / "taken"):
        assert cli.run([*arguments, *(FAST if arguments[0] == "compare" and "--steps" not in arguments else [])]) == 2
    error = capsys.readouterr().err
    # What it names are the command's options, not the library's keywords.
    keywords = {
        name for call in (ni.compare, ni.fit_task, ni.tune, ni.fit) for name in inspect.signature(call).parameters
    }
    keywords |= {"target_psnr"}.union(*[kind.settings for kind in TASKS.values()])
    assert not re.search(rf"(?<!--set )(?<!such as )\b({'|'.join(keywords)})=", error)
    assert error.startswith("ntk-inr: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_fit_keeps_the_reconstruction_and_goes_on(capsys, tmp_path):
    """Of a file whose name is neither UTF-8 nor one line, as old disks and zip files have them."""
    small = ["--features", "8", "--depth", "1", "--steps", "3"]
    name = os.fsdecode(b"caf\xe9\n.png")
    os.rename("photo.png", name)
    assert cli.run(["fit", name, *small]) == 0
    printed = capsys.readouterr().out
    assert "psnr: " in printed
    assert "runs/fit-caf__/reconstruction.png" in printed
    assert "above" not in printed
    with PIL.Image.open("runs/fit-caf__/reconstruction.png") as picture:
        assert picture.size == (8, 8)
    assert json.loads(pathlib.Path("runs/fit-caf__/results.json").read_text())["task"]["name"] == "caf\ufffd\ufffd.png"
    assert cli.run(["fit", name, *small, "--resume"]) == 0
    asked = ["fit", "signal", "chirp", *small, "--set", "samples=64", "--out", "chirp", "--learning-rate", "10"]
    assert cli.run(asked) == 0
    assert np.load("chirp/reconstruction.npy").shape == (64, 1)
    assert "siren did not learn: its loss ended above the start" in capsys.readouterr().out
    assert json.loads(pathlib.Path("chirp/results.json").read_text())["status"] == "ended above the start"


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


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "latin-1", "utf-8"])
def test_output_in_any_encoding(monkeypatch, encoding):
    line = f"★ ± • {os.fsdecode(bytes([0xE9]))} 中"
    goal = Column("adam_psnr_final", "PSNR", "max", "adam", "")
    summary = Summary(20.0, "", goal, (), Record(), Record(), Record(), correlations=[], conclusion=(line,))
    study = Study(Record(), Record(seeds=1), Record(), None, [])
    printed = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", printed)
    with output():
        terminal.print_study(terminal.make_console(), study, summary)
    assert line.encode(encoding, "replace") in printed.buffer.getvalue()


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["variants"], ["tasks"], ["fit"], ["fitt"]])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_left_changes_nothing(monkeypatch, capsys, arguments, stream):
    reader, writer = os.pipe()
    os.close(reader)
    expected = {"fit": 2, "fitt": 2}.get(arguments[0], 0)
    with monkeypatch.context() as patched, os.fdopen(writer, "w") as closed:
        patched.setattr(sys, stream, closed)
        assert cli.run(arguments) == expected
    said = capsys.readouterr()
    assert stream == "stderr" or (said.err != "") == bool(expected)


def test_output_to_a_full_disk_is_said_at_the_end(monkeypatch, capsys):
    with monkeypatch.context() as patched, open("/dev/full", "w") as full:
        patched.setattr(sys, "stdout", full)
        assert cli.run(["tasks"]) == 1
    assert "could not print all (No space left on device)" in capsys.readouterr().err


def test_a_missing_device_and_a_broken_plugin_are_a_line_each(monkeypatch, capsys, caplog):
    def devices():
        try:
            raise OSError("libcuda is missing")
        except OSError:
            logging.getLogger("jax._src.xla_bridge").exception("no plugin %s", "cuda")
        raise RuntimeError("unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert cli.run(["compare", "photo.png"]) == 2
    error = capsys.readouterr().err
    assert "no device that JAX_PLATFORMS=cuda asks for (unable to initialize backend 'cuda')" in error
    assert error.count("\n") == 1
    assert [(record.message, record.exc_info) for record in caplog.records] == [
        ("no plugin cuda: libcuda is missing", None)
    ]
    assert cli.run(["variants"]) == 0  # which needs none


def test_after_ctrl_c_nothing_is_taken_down(monkeypatch, capfd):
    """XLA's threads may be at work, and crash where Python frees what they use."""
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    for stop in (lambda: 130, lambda: (_ for _ in ()).throw(KeyboardInterrupt)):
        monkeypatch.setattr(cli, "run", stop)
        __main__.main()
    assert left == [130, 130]


def test_messages_name_options():
    options = {
        "target_psnr": "--target",
        "out": "--out",
        "angles": "--set angles=",
        "space": "--over",
        "size": "--size",
    }
    for message, expected in {
        "give target_psnr=, in dB.": "give --target, in dB.",
        "target_psnr is nan": "--target is nan",
        "pass size=32.": "pass --size 32.",
        "size=2.5e-3, and out='a b'": "--size 2.5e-3, and --out a b",
        "out=False is odd": "--no-out is odd",
        "angles=[1] and angles='x' are": "--set angles=[1] and --set angles=x are",
        "space['scale'] is 2": "--over scale is 2",
        "the size is 2 and size is 3": "the size is 2 and --size is 3",
        "pass out=np.memmap(...)": "pass out=np.memmap(...)",
        "siren:size=3,angles=2 diverged": "siren:size=3,angles=2 diverged",
    }.items():
        assert in_options(message, options) == expected


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--version"], 0), (["--help"], 0), (["tune", "--help"], 0), (["fit", "--stepz", "3"], 2), (["fitt"], 2)],
)
def test_what_needs_no_jax_does_not_wait_for_it(arguments, status):
    code = "import sys; from ntk_inr import cli; status = cli.run(sys.argv[1:]); "
    code += "print({'jax', 'numpy'} & set(sys.modules)); sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    ("command", "call"), [(arguments.Compare, ni.compare), (arguments.Fit, ni.fit_task), (arguments.Tune, ni.tune)]
)
def test_the_command_has_the_librarys_defaults(command, call):
    options = arguments.values_of(command(arguments.ComparedData(("photo.png",))))
    keywords = {name: parameter.default for name, parameter in inspect.signature(call).parameters.items()}
    shared = (set(options) & set(keywords)) - {"variant"}
    assert {"features", "depth", "steps", "seed", "overwrite", "resume"} <= shared
    assert {name: options[name] for name in shared} == {name: keywords[name] for name in shared}


def test_the_version_is_told(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"ntk-inr {ni.__version__} with jax {jax.__version__}\n"


def test_fit_solves_until_no_step_lowers_the_loss(capsys):
    asked = ["fit", "signal", "chirp", "--set", "samples=34", "--features", "64", "--depth", "2", "--steps", "60"]
    asked += ["--optimizer", "gauss-newton", "--variants", "siren:omega=10"]
    assert cli.run(asked) == 0
    printed = capsys.readouterr().out
    assert "Each step solves for values at the coordinates: 34 unknowns, 1 MiB." in printed
    assert "no further one lowers the loss" in printed
    results = json.loads(pathlib.Path("runs/fit-chirp/results.json").read_text())
    assert results["settings"]["optimizer"] == "gauss-newton"
    assert cli.run([*asked, "--learning-rate", "1e-3", "--overwrite"]) == 2
    assert "leave --learning-rate and --clip out" in capsys.readouterr().err


def test_fit_takes_several_networks_with_settings_in_folders_of_their_own(capsys):
    asked = ["fit", "signal", "chirp", "--set", "samples=64", "--features", "8", "--depth", "1", "--steps", "2"]
    asked += ["--variants", "siren:omega=10", "rff:scale=2,encoding.features=4"]
    asked += ["--recipe", "published", "--clip", "1", "--batch-size", "32", "--optimizer-set", "b1=0.8"]
    assert cli.run(asked) == 0
    printed = capsys.readouterr().out
    assert printed.index("siren:omega=10") < printed.index("rff:scale=2")
    results = json.loads(pathlib.Path("runs/fit-chirp/siren_omega=10/results.json").read_text())
    assert results["numbers"]["activation.omega"] == 10
    told = {"recipe": "published", "learning_rate": 1e-4, "schedule": "constant", "clip": 1.0, "batch_size": 32}
    assert {**told, "settings": {"b1": 0.8}}.items() <= results["settings"].items()
    assert pathlib.Path("runs/fit-chirp/rff_scale=2,encoding.features=4/reconstruction.npy").exists()
    assert cli.run([*asked, "--resume"]) == 0


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("siren:omgea=3", "Did you mean 'omega'?"),
        ("siren:omega", "write name=number, such as siren:features=128,depth=3"),
        ("sirne:omega=3", "Did you mean 'siren'?"),
    ],
)
def test_a_mistake_in_any_network_shows_before_the_first_is_trained(capsys, written, message):
    for command in ("fit", "compare", "tune"):
        assert cli.run([command, "photo.png", "--variant", "relu", written, "--steps", "1"]) == 2
        assert message in capsys.readouterr().err
    assert not pathlib.Path("runs").exists()


def _as_a_process(*arguments, **environment):
    """Run the command as a user does, and return it when it has ended; its programs are kept in the folder "cache"."""
    root = pathlib.Path(__main__.__file__).parents[1]
    environment = os.environ | {"XDG_CACHE_HOME": "cache", "PYTHONPATH": str(root)} | environment
    command = [sys.executable, "-m", "ntk_inr", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _programs():
    return {path.name for path in pathlib.Path("cache").glob("ntk-inr/programs/*/*-cache")}


def test_a_process_takes_the_programs_of_the_one_before():
    """Results are those of programs that were just compiled, also by a run that was resumed, to the bit."""
    asked = ["fit", "photo.png", *FAST[:-4], "--variant", "siren", "--schedule", "constant", "--out"]
    first = _as_a_process(*asked, "first", "--steps", "6")
    programs = _programs()
    second = _as_a_process(*asked, "second", "--steps", "6")
    assert (first.returncode, second.returncode) == (0, 0)
    assert (first.stderr, second.stderr) == ("", "")
    assert len(programs) > 5
    # Of which the second process compiled none.
    assert programs == _programs()
    assert not list(pathlib.Path("cache").glob("ntk-inr/programs/*/in_use/*"))
    assert cli.run([*asked, "resumed", "--steps", "3"]) == 0
    assert cli.run([*asked, "resumed", "--steps", "6", "--resume"]) == 0
    first, *others = (ni.load_fit(folder) for folder in ("first", "second", "resumed"))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first.params, other.params)
        np.testing.assert_array_equal(first.history["loss"][-1], other.history["loss"][-1])


def test_the_cache_is_turned_off_by_a_switch():
    done = _as_a_process("variants", NTK_INR_COMPILATION_CACHE="0")
    assert done.returncode == 0
    assert "siren" in done.stdout
    assert not pathlib.Path("cache").exists()


def test_only_whole_programs_are_kept_and_those_used_last(tmp_path, monkeypatch):
    kept, other = tmp_path / "jax-a", tmp_path / "jax-b"
    whole, torn = zlib.compress(bytes(1000)), zlib.compress(bytes(1000))[:-3]
    for folder in (kept, other):
        folder.mkdir()
    for number, name in enumerate(("oldest", "old")):
        (other / f"{name}-cache").write_bytes(whole)
        os.utime(other / f"{name}-cache", (number, number))
    own = compilation_cache._own_folder(kept)
    stale = compilation_cache._own_folder(kept)
    os.utime(stale, (0, 0))
    for name, content in (("new", whole), ("torn", torn), ("empty", b"")):
        (own / f"{name}-cache").write_bytes(content)
    monkeypatch.setattr(compilation_cache, "_MOST_BYTES", 2 * len(whole))
    compilation_cache._keep(sorted(own.glob("*-cache")), kept)
    assert sorted(path.name for path in tmp_path.glob("*/*-cache")) == ["new-cache", "old-cache"]
    again = compilation_cache._own_folder(kept)
    assert os.listdir(again) == ["new-cache"]
    assert not stale.exists()
    assert own.exists()


@pytest.mark.parametrize("what", ["a file in its place", "a folder of someone else"])
def test_a_folder_that_cannot_be_used_stops_nothing(tmp_path, monkeypatch, what):
    monkeypatch.setattr(compilation_cache, "cache_folder", lambda: tmp_path / "programs")
    monkeypatch.setattr(compilation_cache, "_configure", lambda own: pytest.fail("a cache is used"))
    if what == "a file in its place":
        (tmp_path / "programs").write_text("mine")
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with compilation_cache.programs_kept():
        pass
