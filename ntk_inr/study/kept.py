"""Trained networks on disk: kept by ``fit_task`` and ``compare``, and loaded again.

A network is two files: ``.safetensors`` holds parameters, batch statistics and the like by their paths, and the curve
of the training under "ntk_inr/"; ``.json`` describes the module and what it was trained on. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ntk_inr import _checks
from ntk_inr._results import Record
from ntk_inr._version import __version__
from ntk_inr.kernels.adapters import split
from ntk_inr.study import record, weights
from ntk_inr.study.fitted import Context, Fitted
from ntk_inr.study.modules import Undescribed, build_module, describe_module
from ntk_inr.training.result import FitResult

FIT = "ntk_inr.fit v1"
"""Schema of the results of one network."""
_SCHEMA, _VERSION = "ntk_inr.network", 1
_OWN = "ntk_inr"
_NETWORK = "network"
_TRAINING = ("status", "steps", "full_batch", "data_range", "loss", "every_step", "best_step")


def network_in(folder: Path, variant: str | None = None, seed: int = 0) -> Path:
    """Return where a network lies in a folder of results, without suffixes: that of a fit, or one of a comparison."""
    if variant is None:
        return folder / _NETWORK
    return folder / "networks" / f"{variant.replace('/', '_').replace(':', '_')}.{seed}"


def keep(stem: Path, found: Fitted) -> Path:
    """Write a network's two files, which replace others only once both are whole; return the path of the weights."""
    context, run = found.context, found.run
    assert context is not None
    own = {_OWN: {"history": run.history, "losses": run.losses}}
    variables = {**found.apply.args[0], "params": run.params}
    leaves = weights.flattened({**variables, **own})
    stem.parent.mkdir(parents=True, exist_ok=True)
    described, missing = None, ""
    try:
        described = describe_module(context.net)
    except Undescribed as error:
        missing = str(error)
    with tempfile.TemporaryDirectory(dir=stem.parent, prefix=".keeping-") as written:
        arrays, text = Path(written) / "weights", Path(written) / "text"
        record.write_atomically(arrays, lambda file: weights.write(file, leaves))
        content = {
            "schema": _SCHEMA, "version": _VERSION, "ntk_inr": __version__,
            "network": described, "not described": missing, "text": context.text,
            "inputs": context.inputs, "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
            "task": context.described, "training": {name: getattr(run, name) for name in _TRAINING},
            "arrays": {name: leaf.dtype.name for name, leaf in leaves.items()}, "sha256": _digest(arrays),
        }  # fmt: skip
        record.write_json(text, content)
        os.replace(arrays, _weights(stem))
        os.replace(text, _description(stem))
    return _weights(stem)


def load_fit(
    folder: str | os.PathLike[str], *, variant: str | None = None, seed: int = 0, net: nn.Module | None = None
) -> Fitted:
    """Load a trained network from the folder that ``fit_task``, ``compare`` or their commands wrote.

    Args:
        folder: of the results.
        variant: which network of a comparison; None where there is one.
        seed: which of its seeds, from 0.
        net: the Linen module, where it is not of this package: its weights are kept, its code is not.

    Returns:
        :class:`Fitted`, as :func:`fit_task` returns it, but for the reconstruction. Its task is built again from
        the source when it is asked for.

    Raises:
        FileNotFoundError: no results there, or none of a network.
        ValueError: results of another kind or a later version, a damaged file, an unknown variant or seed, or a
            ``net`` that has other parameters.

    Example:
        >>> import tempfile, numpy as np, ntk_inr as ni
        >>> task = ni.load_task("signal", "sines", samples=64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fitted = ni.fit_task(task, "siren", features=16, depth=2, steps=20, out=f"{folder}/run")
        ...     found = ni.load_fit(f"{folder}/run")
        >>> found.net == fitted.net, bool(np.array_equal(found(task.x), fitted(task.x))), found(task.x[0]).shape
        (True, True, (1,))
    """
    folder = Path(folder)
    content = _results(folder)
    if content["schema"] == FIT:
        if variant is not None:
            raise ValueError(f"variant={variant!r} chooses from a comparison, and {str(folder)!r} holds one network.")
        stem, scores = network_in(folder), content.get("scores", {})
    else:
        variant, scores = _of_comparison(folder, content, variant, seed)
        stem = network_in(folder, variant, seed)
    files = {"network": _weights(stem), "result": folder / record.RESULTS}
    files |= {name: folder / path for name, path in content.get("files", {}).items() if (folder / path).exists()}
    baselines = tuple(map(Record, content.get("baselines", ())))
    return _loaded(stem, net, scores=scores, files=Record(files), baselines=baselines)


def _results(folder: Path) -> dict[str, Any]:
    """Return ``results.json`` of a fit or a comparison, or say what the folder holds instead."""
    path = folder / record.RESULTS
    if not path.is_file():
        inside = sorted(entry.parent.name for entry in folder.glob(f"*/{record.RESULTS}")) if folder.is_dir() else []
        hint = f" It has folders of results: {', '.join(inside)}; load one of them." if inside else ""
        raise FileNotFoundError(
            f"no {record.RESULTS} in {str(folder)!r}; expected a folder that ntk-inr fit or compare wrote.{hint}"
        )
    content = _json(path)
    schema = content.get("schema")
    if schema not in (FIT, record.SCHEMA):
        raise ValueError(
            f"{str(path)!r} has the schema {schema!r}, which keeps no trained network; expected a folder that ntk-inr "
            "fit or ntk-inr compare wrote."
        )
    return content


def _of_comparison(
    folder: Path, content: Mapping[str, Any], variant: str | None, seed: int
) -> tuple[str, dict[str, Any]]:
    """Return which variant of a comparison is meant, and the scores of its seed."""
    entries = {entry["name"]: entry for entry in content["variants"]}
    if variant is None:
        if len(entries) != 1:
            raise ValueError(f"{str(folder)!r} compares {', '.join(entries)}; choose one by variant=.")
        (variant,) = entries
    _checks.check_choice(variant, entries, "variant")
    _checks.check_positive(seed, "seed", integer=True, least=0)
    seeds = entries[variant]["seeds"]
    if seed >= len(seeds):
        raise ValueError(f"seed is {seed}; {variant} was trained from {len(seeds)} seeds, counted from 0.")
    prefix = "score_"
    scores = {name.removeprefix(prefix): value for name, value in seeds[seed].items() if name.startswith(prefix)}
    return variant, scores


def _loaded(stem: Path, net: nn.Module | None, **what: Any) -> Fitted:
    content = _json(_description(stem))
    _check_version(_description(stem), content)
    missing = f"the network is {content['text']}, which is not kept as a module ({content['not described']}); "
    missing += "pass net=, the same Linen module, to load_fit."
    if net is None and content["network"] is not None:
        try:
            net = build_module(content["network"])
        except (ValueError, KeyError) as error:
            raise ValueError(f"{str(_description(stem))!r} describes no network of this ntk_inr: {error}") from error
    leaves = _arrays(stem, content)
    own = {name: leaves.pop(name) for name in list(leaves) if name.startswith(f"{_OWN}/")}
    variables = _on_device(leaves)
    apply, params = None, variables.get("params", {})
    if net is not None:
        apply, params = split((net, _structured(net, content["inputs"], variables)))
    history = weights.nested(own)[_OWN]
    run = FitResult(
        params=params, apply=apply, history=history["history"], losses=history["losses"], **content["training"]
    )
    return Fitted(
        run,
        reconstruction=None,
        apply=apply,
        context=Context(net, content["inputs"], content["task"], content["text"], missing),
        **what,
    )


def _on_device(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    wide = [name for name, leaf in leaves.items() if jnp.asarray(leaf).dtype != leaf.dtype]
    if wide:
        warnings.warn(
            f"{wide[0]} is {leaves[wide[0]].dtype}, and is loaded in half of its digits, since JAX has 64 bits off; "
            "call in jax.enable_x64(True) for all of them.",
            stacklevel=4,
        )
    return weights.nested({name: jnp.asarray(leaf) for name, leaf in leaves.items()})


def _structured(net: nn.Module, inputs: int, variables: Mapping[str, Any]) -> Any:
    """Return the variables in the structure that ``net`` has them in; raise where it has others."""
    x, key = jnp.zeros((1, inputs)), jax.random.key(0)
    try:
        wanted = jax.eval_shape(net.init, key, x)
    except jax.errors.JAXTypeError:  # of a module that looks at values
        wanted = net.init(key, x)
    paths = jax.tree_util.tree_leaves_with_path(wanted)
    shapes = {weights.name_of(path): leaf.shape for path, leaf in paths}
    given = {weights.name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    differing = [name for name in {**shapes, **given} if name not in given or shapes.get(name) != given[name].shape]
    if differing:
        name = differing[0]
        kept = given[name].shape if name in given else "missing"
        raise ValueError(
            f"{type(net).__name__} has other parameters than were kept: {name} is {kept} in the file, and "
            f"{shapes.get(name, 'missing')} in the network, of {len(differing)} that differ; give the network that "
            "was trained."
        )
    return jax.tree.unflatten(jax.tree.structure(wanted), [given[name] for name in shapes])


def _arrays(stem: Path, content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    path = _weights(stem)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; copy the whole folder.")
    if _digest(path) != content["sha256"]:
        raise ValueError(
            f"{str(path)!r} is damaged, or of another run than {_description(stem).name}: its digest is not the one "
            "that is noted there."
        )
    return weights.read(path, content["arrays"])


def _check_version(path: Path, content: Mapping[str, Any]) -> None:
    if content.get("schema") != _SCHEMA:
        raise ValueError(f"{str(path)!r} is not the description of a network (schema {_SCHEMA!r} is missing).")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"{str(path)!r} has version {content.get('version')!r}, and this ntk_inr reads {_VERSION}; use the one "
            f"that wrote it ({content.get('ntk_inr')})."
        )
    needed = ("network", "not described", "text", "inputs", "task", "training", "arrays", "sha256")
    absent = [name for name in needed if name not in content]
    if absent:
        raise ValueError(f"{str(path)!r} is damaged: it lacks {', '.join(absent)}.")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is missing: the training has not ended, its folder was copied in part, or an ntk_inr "
            "before 0.2 wrote it, which kept no network."
        )
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: it is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} is damaged: it holds a {type(content).__name__}, no description.")
    return content


def _weights(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.safetensors")


def _description(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.json")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
