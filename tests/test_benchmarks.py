"""What the benchmarks share: rows in processes of their own, and those that an interrupted run has kept."""

import functools
import operator

import pytest

from benchmarks import keep


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
