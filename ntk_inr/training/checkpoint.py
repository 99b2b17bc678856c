"""Checkpoints of a run by orbax's manager: written whole or not at all, read back only if every byte is right."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_inr._version import __version__

OPTIMIZER = "optimizer, its rate or its schedule"
"""What of a run may be another when it goes further."""


class Saved(NamedTuple):
    """The content of one checkpoint: leaves of the state by path, columns of the history, and what is JSON.

    A leaf without entries is None.
    """

    leaves: dict[str, np.ndarray | None]
    history: dict[str, np.ndarray]
    meta: dict[str, Any]


class Store:
    """The checkpoints of one run in a folder, ``step_<steps done>`` each; other files there are left alone.

    Orbax's manager writes, finds, keeps and deletes them: a process killed at any moment leaves none that counts as
    complete and is not. What it does not look at is whether a complete one was damaged since, and whose it is: a
    SHA-256 of all content is checked on reading, and what identifies the run is compared.

    Args:
        folder: made where it does not exist.
        keep: how many of the newest stay.
        run: what makes this run what it is, a digest or value each; :meth:`find` refuses checkpoints of others.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int, run: dict[str, Any]) -> None:
        self.folder = Path(folder).absolute()
        self.keep, self.run = keep, run
        self._damaged: list[int] = []
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{str(folder)!r} is a file; expected a folder for checkpoints.")
        try:
            str(self.folder).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{str(self.folder)!r} is not UTF-8, as checkpoints need; choose another folder."
            ) from error

    @functools.cached_property
    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep, step_prefix="step", cleanup_tmp_directories=True, save_root_metadata=False,
            enable_async_checkpointing=False,
        )  # fmt: skip
        return ocp.CheckpointManager(self.folder, options=options)

    def close(self) -> None:
        """Close orbax's manager, after which nothing is written any more."""
        if "_manager" in vars(self):
            self._manager.close()

    def find(self, resume: bool | str, overwrite: bool, most: int) -> Saved | None:
        """Return the newest checkpoint that is whole and of this run, or None for a fresh start; change none yet.

        Args:
            resume: as of ``fit``; with "further" the optimizer may be another.
            overwrite: whether other checkpoints there may be deleted.
            most: how many steps a checkpoint that is resumed may have taken.

        Raises:
            FileExistsError: the folder has checkpoints that may neither be resumed nor overwritten.
        """
        with _quiet():
            steps = sorted(self._manager.all_steps(), reverse=True)
        old = [step for step in steps if not self._at(step, "default").is_dir()]
        saved, damaged = (None, []) if old else self._newest(steps)
        other = {} if saved is None else saved.meta["run"]
        differing = [name for name in self.run if saved is not None and other.get(name) != self.run[name]]
        if resume == "further" and OPTIMIZER in differing:
            differing.remove(OPTIMIZER)
        beyond = saved is not None and saved.meta["step"] > most
        if saved is not None and resume and not differing and not beyond:
            self._damaged = damaged
            return saved
        if steps and not overwrite:
            why = "checkpoints of this run, and resume=False"
            if old:
                why = "checkpoints that ntk_inr 0.1 wrote, which later versions do not read; 0.1 can end that run"
            elif saved is None:
                why = "checkpoints, none of which can be read"
            elif differing:
                wrote = saved.meta["version"]
                why = f"checkpoints of another run, which ntk_inr {wrote} wrote: {', '.join(differing)} differ"
                if resume and differing == [OPTIMIZER]:
                    why += ' (resume="further" goes on with the new one)'
            elif resume and beyond:
                why = f"checkpoints of this run up to step {saved.meta['step']}, beyond steps={most}"
            raise FileExistsError(
                f"{self.folder} has {why}. Give another folder, or overwrite=True to delete them and begin anew."
            )
        return None

    def clear(self, saved: Saved | None) -> None:
        """Set damaged checkpoints aside, and delete all of them where :meth:`find` returned None for a fresh start."""
        for step in self._damaged:  # which the run comes by again
            self._at(step).rename(self.folder / f"damaged_{step}_{os.getpid()}")
        self._manager.reload()
        for step in self._manager.all_steps() if saved is None else []:
            self._manager.delete(step)

    def save(self, step: int, state: Any, history: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Write a checkpoint, then delete the oldest beyond ``keep``.

        Raises:
            OSError: it can't be written, as on a full disk; those before it are left as they are.
        """
        import orbax.checkpoint as ocp

        kept = self._manager.latest_step()
        if kept == step:
            return
        leaves = _by_path(state)
        content = {f"state.{i}": _on_host(leaf) for i, leaf in enumerate(leaves.values())}
        content |= {f"history.{name}": np.asarray(column) for name, column in history.items()}
        content = {name: array for name, array in content.items() if array.size}  # which orbax can't hold
        described = {"run": self.run, "version": __version__, "step": step, "leaves": list(leaves), **meta}
        content["meta"] = np.frombuffer(json.dumps(described, default=np.generic.item).encode(), np.uint8)
        content["digest"] = _digest(content)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _quiet():
                self._manager.save(step, args=ocp.args.StandardSave(content))
        except Exception as error:  # tensorstore raises OSError, ValueError or XlaRuntimeError for one cause
            last = "there is none yet" if kept is None else f"the last good one is of step {kept}"
            raise OSError(
                f"could not write the checkpoint of step {step} to {self.folder}; {last}. See that there is "
                f"room and leave to write, then make the same call to go on. The cause: {str(error)[:500]}"
            ) from error

    def _newest(self, steps: list[int]) -> tuple[Saved | None, list[int]]:
        """Return the newest checkpoint that can be read, and the steps of newer ones that can't."""
        damaged: list[int] = []
        for step in steps:
            try:
                return self._read(step), damaged
            except Exception as error:  # whatever a damaged file makes orbax raise
                warnings.warn(f"checkpoint {self._at(step)} is damaged and not used: {error}", stacklevel=5)
                damaged.append(step)
        return None, damaged

    def _read(self, step: int) -> Saved:
        import orbax.checkpoint as ocp

        with _quiet():
            restored = self._manager.restore(step, args=ocp.args.StandardRestore())
        content = {name: np.asarray(array) for name, array in restored.items()}
        digest = content.pop("digest")
        if not np.array_equal(digest, _digest(content)):
            raise ValueError("its content does not match its digest")
        meta = json.loads(content.pop("meta").tobytes())
        leaves = {path: content.get(f"state.{i}") for i, path in enumerate(meta["leaves"])}
        prefix = "history."
        return Saved(leaves, {n.removeprefix(prefix): a for n, a in content.items() if n.startswith(prefix)}, meta)

    def _at(self, step: int, item: str = "") -> Path:
        return self.folder / f"step_{step}" / item


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence orbax's log within the block, where it would print pages about an error that it raises too."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def restore(saved: Saved, fresh: Any) -> Any:
    """Return a state with the leaves of a checkpoint, structured and placed as ``fresh``, a state at step 0.

    The count of a schedule that the optimizer had none of before is the number of steps taken.
    """
    leaves, kept = _by_path(fresh), dict(saved.leaves)
    for path in set(leaves) - set(kept):
        if path.endswith(".count"):
            kept[path] = np.full(leaves[path].shape, saved.meta["step"])
    extra = [path for path in set(kept) - set(leaves) if not path.endswith(".count")]
    shapes = {path: None if leaf is None else leaf.shape for path, leaf in kept.items()}
    if extra or any(shapes.get(path, "missing") not in (None, _on_host(leaf).shape) for path, leaf in leaves.items()):
        raise ValueError(
            'resume="further" got an optimizer whose state has another structure than the kept one; expected the same '
            "optimizer, of another rate or schedule."
        )
    restored = [_on_device(leaf, kept[path]) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(fresh), restored)


def _by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by their paths."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _on_host(leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.array(leaf)


def _on_device(own: Any, new: np.ndarray | None) -> Any:
    if new is None:  # without entries
        return own
    if jax.dtypes.issubdtype(own.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(own))
    return jax.device_put(jnp.asarray(new, own.dtype).reshape(own.shape), own.sharding)


def _digest(content: dict[str, np.ndarray]) -> np.ndarray:
    state = hashlib.sha256()
    for name in sorted(content):
        array = content[name]
        state.update(f"{name} {array.dtype} {array.shape} ".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(state.digest(), np.uint8)


def tree_digest(tree: Any) -> str:
    """Return a digest of a pytree of arrays: its structure, and every byte."""
    leaves, structure = jax.tree.flatten(tree)
    content = {f"{i}": _on_host(jnp.asarray(leaf)) for i, leaf in enumerate(leaves)}
    return _digest(content).tobytes().hex() + _text_digest(str(structure))


def program_digest(function: Any, *arguments: Any) -> str:
    """Return a digest of what ``function`` computes as JAX traces it: of model, loss, optimizer and their settings."""
    closed = jax.make_jaxpr(function)(*arguments)
    # Not str(closed), which has colours where it would be printed on a terminal.
    return _text_digest(closed.pretty_print(use_color=False)) + tree_digest(_constants(closed))


def _text_digest(text: str) -> str:
    """Return a digest of text that JAX prints, without addresses and the order of sets: each process has others."""
    text = re.sub(r"0x[0-9a-f]+", "", text)  # addresses of functions
    text = re.sub(r"\{([^{}:]*)\}", lambda match: ", ".join(sorted(match[1].split(", "))), text)  # the order of sets
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _constants(closed: Any) -> list[Any]:
    """Return the arrays that a traced program, and the programs nested in it, have closed over."""
    arrays = [value for value in closed.consts if hasattr(value, "dtype")]
    for equation in closed.jaxpr.eqns:
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda node: hasattr(node, "jaxpr")):
            if hasattr(value, "jaxpr") and hasattr(value, "consts"):
                arrays += _constants(value)
    return arrays
