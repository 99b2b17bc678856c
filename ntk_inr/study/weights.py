"""Arrays of a network in a safetensors file, by their paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

_FORMATS = {
    "BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64",
}  # fmt: skip
"""Dtypes of JAX by their names in the format."""


def flattened(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves of a pytree by their paths, "params/hidden_0/kernel", on the host.

    Raises:
        TypeError: a leaf that is no array of numbers.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name_of(path): _on_host(leaf, name_of(path)) for path, leaf in leaves}


def name_of(path: Any) -> str:
    """Return the name of a leaf in the file."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return leaves by their paths as nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def write(file: IO[bytes], leaves: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name; complex ones as real ones with a last axis (real, imaginary), which the format knows."""
    stored = {name: np.asarray(_as_real(leaf), order="C") for name, leaf in leaves.items()}
    file.write(safetensors.numpy.save(stored, metadata={"format": "ntk_inr"}))


def read(path: Path, dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name, those that ``dtypes`` calls complex as such.

    Raises:
        ValueError: the file is damaged, or holds other arrays.
    """
    try:
        entries = dict(safetensors.deserialize(path.read_bytes()))
        arrays = {
            name: np.frombuffer(entry["data"], jnp.dtype(_FORMATS[entry["dtype"]])).reshape(entry["shape"])
            for name, entry in entries.items()
        }
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged: it can't be read as safetensors ({error}).") from error
    if set(arrays) != set(dtypes):
        raise ValueError(f"{str(path)!r} holds other arrays than the file beside it lists; copy both from one run.")
    return {name: _as_complex(array, dtypes[name]) for name, array in arrays.items()}


def _as_real(leaf: np.ndarray) -> np.ndarray:
    return np.stack([leaf.real, leaf.imag], axis=-1) if np.iscomplexobj(leaf) else leaf


def _as_complex(array: np.ndarray, dtype: str) -> np.ndarray:
    if not dtype.startswith("complex"):
        return array
    return array.view(dtype).squeeze(-1)


def _on_host(leaf: Any, name: str) -> np.ndarray:
    array = (
        None if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else np.asarray(leaf)
    )
    if array is None or (array.dtype.name not in _FORMATS.values() and array.dtype.kind != "c"):
        raise TypeError(f"{name} has dtype {getattr(leaf, 'dtype', type(leaf))}, which a safetensors file can't hold.")
    return array
