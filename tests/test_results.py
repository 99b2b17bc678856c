"""What goes for every result: frozen, a pytree that jit and vmap take, readable at a glance."""

import ast
import copy
import dataclasses
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr._results import Record
from tests.results import RESULTS


def decorated():
    """Return the names of all public classes of the package under ``@result``."""
    trees = [ast.parse(path.read_text()) for path in pathlib.Path(ni.__file__).parent.rglob("*.py")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    marked = [node.name for node in classes if "result" in [getattr(d, "id", None) for d in node.decorator_list]]
    return {name for name in marked if not name.startswith("_")}


def test_every_result_is_here():
    assert decorated() == set(RESULTS)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(b, np.float64), np.asarray(a, np.float64), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_laws(name):
    result = RESULTS[name]()
    leaves, structure = jax.tree.flatten(result)
    assert all(isinstance(leaf, int | float | np.ndarray | np.generic | jax.Array) for leaf in leaves)
    same(jax.tree.unflatten(structure, leaves), result)
    same(jax.tree.map(lambda leaf: leaf, result), result)
    once = jax.jit(lambda result: result)(result)
    same(once, result)
    if leaves:
        twice = jax.vmap(lambda result: result)(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), once))
        assert jax.tree.structure(twice) == structure

    for shown in (result, once):
        assert type(shown).__name__ == name
        lines = str(shown).splitlines()
        assert 1 < len(lines) <= 24, shown
        assert max(map(len, lines)) <= 100, max(lines, key=len)
        assert repr(shown).startswith(f"{name}(")
        assert "\n" not in repr(shown)

    field = dataclasses.fields(result)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, field, None)
    same(copy.deepcopy(dataclasses.replace(result)), result)


def test_records_keep_their_order_and_do_not_change():
    record = Record(b=1.0, a={"word": "x", "list": [1, 2]})
    again = jax.jit(lambda r: r)(record)
    assert list(again) == ["b", "a"]
    assert again == {"b": 1.0, "a": {"word": "x", "list": (1, 2)}}
    assert pickle.loads(pickle.dumps(record)) == record
    assert hash(record) == hash(Record(a=record["a"], b=1.0))
    for change in (lambda: record.update(b=2), lambda: record.pop("b"), lambda: record.__setitem__("b", 2)):
        with pytest.raises(TypeError, match="does"):
            change()


@pytest.mark.parametrize(
    "task",
    [
        lambda: ni.image_task("camera", size=8, holdout=0.5),
        lambda: ni.signal_task("chirp", samples=64),
        lambda: ni.shape_task("torus", points=50, resolution=8),
    ],
)
def test_a_task_is_told_in_a_few_lines(task):
    task = task()
    assert "\n" not in repr(task)
    assert len(repr(task)) < 100
    assert task.name in str(task)
    assert len(str(task).splitlines()) < 10
