"""What the benchmarks share: rows in processes of their own, and those that an interrupted run has kept."""

import functools
import json
import operator
import subprocess
import sys

import pytest

from benchmarks import import_time, keep, quality


def test_an_interrupted_run_keeps_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(keep, "RESULTS", tmp_path)
    computed = []

    def row(name, *, stops=False):
        if stops:
            raise KeyboardInterrupt
        computed.append(name)
        return name.upper()

    def rows(settings, stops):
        computes = {name: functools.partial(row, name, stops=name == stops) for name in "abc"}
        return keep.collect("some", "cpu", settings, computes, "{}: {}".format)

    with pytest.raises(KeyboardInterrupt):
        rows({"n": 1}, "b")
    assert rows({"n": 1}, None) == {"a": "A", "b": "B", "c": "C"}
    assert computed == ["a", "b", "c"]
    assert "a: kept by an interrupted run" in capsys.readouterr().out
    rows({"n": 2}, None)
    assert computed == ["a", "b", "c", "a", "b", "c"]


def test_a_row_that_fails_spares_the_others_and_is_raised_in_the_end():
    computes = {f"{a}/{b}": functools.partial(operator.truediv, a, b) for a, b in ((6, 2), (1, 0), (4, 2))}
    done = []
    with pytest.raises(ZeroDivisionError):
        done.extend(keep.each(computes, jobs=2))
    assert sorted(done) == [("4/2", 2.0), ("6/2", 3.0)]


def test_a_table_of_quality_that_another_device_completes_says_so(tmp_path):
    def row(seed, device):
        own = {"variant": "relu", "depth": 4, "learning_rate": [1e-3, 1e-3], "status": ["finished"]}
        return own | {"seeds": [seed], "devices": [device], "scores": {"psnr@10": [20.0 + seed]}}

    part, path = quality.QUICK["image64"], tmp_path / "image64.json"
    began = {"device": "gpu: H200"}
    path.write_text(json.dumps({"rows": [row(1, "H200")], "environment": began}))
    table = quality.Table("image64", part, tmp_path)
    assert table.has("relu", 1)
    assert not table.has("relu", 2)
    table.add(row(2, "cpu"), None)
    content = json.loads(path.read_text())
    assert content["environment"] == began
    assert "Trainings: 1 on H200, 1 on cpu." in quality.table({"image64": content})
    assert "21.5 ± 0.71" in quality.table({"image64": content})


def test_a_part_measured_anew_keeps_the_others_with_their_own_environment(tmp_path):
    path, order = tmp_path / "results.json", ["a", "b", "c"]
    first = keep.completed(path, {"environment": "monday"}, {"b": 2, "a": 1}, order)
    assert list(first)[1:3] == ["a", "b"]
    path.write_text(json.dumps(first))
    second = keep.completed(path, {"environment": "tuesday"}, {"b": 3}, order)
    assert (second["a"], second["b"], second["environment"]) == (1, 3, "tuesday")
    assert second["environments"] == {"a": "monday", "b": "tuesday"}


def test_a_part_that_a_device_lacks_is_refused():
    arguments = keep.arguments_of("", parts=["a", "b"]).parse_args(["b"])
    with pytest.raises(SystemExit, match=r"b: not here .*; there are a"):
        keep.parts_asked_for(arguments, {"a": 1})
    assert keep.parts_asked_for(keep.arguments_of("", parts=["a"]).parse_args([]), {"a": 1}) == {"a": 1}


def test_importing_the_package_stays_light():
    """It takes some 130 modules of its own and of typing's; a part of SciPy alone would take 400."""
    told = subprocess.run([sys.executable, "-c", import_time.PROGRAM], check=True, capture_output=True, text=True)
    found = json.loads(told.stdout)
    assert found["modules"] < 250
    assert not found["unwanted"]
