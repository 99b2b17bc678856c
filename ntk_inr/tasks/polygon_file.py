"""Files of polygons: ``.obj``, ``.off`` and ``.ply`` with their faces whole.

trimesh reads these too, but cuts faces into fans, which cross themselves where a face is not convex.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np


class Polygons(NamedTuple):
    """Polygons in space.

    Attributes:
        vertices: (v, 3) float64.
        faces: arrays (m, n) of indices of vertices, one for each number n of corners, at least 3.
    """

    vertices: np.ndarray
    faces: list[np.ndarray]


def read_polygons(path: Path) -> Polygons:
    """Read a file whose suffix is one of :data:`READERS`."""
    vertices, faces = READERS[path.suffix.lower()](path.read_bytes())
    sizes: dict[int, Any] = {}
    if isinstance(faces, np.ndarray):
        sizes[faces.shape[1]] = faces
    else:
        for face in faces:
            sizes.setdefault(len(face), []).append(face)
    grouped = [np.asarray(group, np.int64) for size, group in sorted(sizes.items()) if size > 2 and len(group)]
    for group in grouped:
        if group.min() < 0 or group.max() >= len(vertices):
            raise ValueError(f"a face has a corner that is none of the {len(vertices)} vertices")
    return Polygons(vertices.reshape(-1, 3), grouped)


_Read = tuple[np.ndarray, Any]
"""Vertices (v, 3), and faces as an array (m, n) or as sequences of indices."""


def _read_obj(content: bytes) -> _Read:
    vertices: list[list[str]] = []
    faces = []
    for line in content.decode("utf-8", "replace").replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        word, *rest = line.partition("#")[0].split() or [""]
        if word == "v":
            vertices.append(rest[:3])
        elif word == "f":
            numbers = [int(corner.partition("/")[0]) for corner in rest]
            # Numbers begin with 1; negative ones count back from the last vertex before the face.
            faces.append([number - 1 if number > 0 else len(vertices) + number for number in numbers])
    return np.array(vertices, np.float64), faces


def _read_off(content: bytes) -> _Read:
    lines = [line.partition("#")[0].split() for line in content.decode("utf-8", "replace").splitlines()]
    head, *lines = [line for line in lines if line]
    if head[0] not in ("OFF", "COFF", "NOFF", "CNOFF", "STOFF") or "BINARY" in head:
        raise ValueError(f"it begins with {' '.join(head)[:20]!r}; expected OFF and text")
    counts, *lines = [head[1:], *lines] if len(head) > 1 else lines
    points, count = int(counts[0]), int(counts[1])
    if len(lines) < points + count:
        raise ValueError(f"it has {len(lines)} lines for {points} vertices and {count} faces")
    vertices = np.array([line[:3] for line in lines[:points]], np.float64)
    return vertices, [[int(text) for text in line[1 : 1 + int(line[0])]] for line in lines[points : points + count]]


# The others are NumPy's own names.
_PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
_PLY_ORDERS: dict[str, Literal["=", "<", ">"]] = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}


class _Property(NamedTuple):
    """A property of an element: a number in each row, or a list of numbers after its length."""

    name: str
    dtype: np.dtype
    length: np.dtype | None


def _read_ply(content: bytes) -> _Read:
    head, _, body = content.partition(b"end_header")
    lines = [line.split() for line in head.decode("latin-1").splitlines()]
    kind = next((line[1] for line in lines if line[:1] == ["format"]), "none")
    if lines[:1] != [["ply"]] or kind not in _PLY_ORDERS:
        raise ValueError("it does not begin with ply and one of its formats")
    order = _PLY_ORDERS[kind]
    body = body[2:] if body[:2] == b"\r\n" else body[1:]
    if kind == "ascii":  # read as if each number were stored in float64
        body = np.array(body.split(), np.float64).tobytes()

    def dtype(name: str) -> np.dtype:
        return np.dtype(np.float64) if kind == "ascii" else np.dtype(_PLY_TYPES.get(name, name)).newbyteorder(order)

    elements: list[tuple[str, int, list[_Property]]] = []
    for line in lines:
        if line[:1] == ["element"]:
            elements.append((line[1], int(line[2]), []))
        elif line[:2] == ["property", "list"]:
            elements[-1][2].append(_Property(line[4], dtype(line[3]), dtype(line[2])))
        elif line[:1] == ["property"]:
            elements[-1][2].append(_Property(line[2], dtype(line[1]), None))
    vertices, faces, place = np.zeros((0, 3)), np.zeros((0, 3), int), 0
    for element, count, properties in elements:
        columns, place = _columns(body, place, count, properties)
        if element == "vertex":
            vertices = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float64)
        if element == "face":
            faces = columns.get("vertex_indices", columns.get("vertex_index", faces))
    return vertices, faces


def _columns(body: bytes, place: int, count: int, properties: Sequence[_Property]) -> tuple[dict, int]:
    """Return the values of an element by property, arrays or lists of arrays, and the place after it."""
    fields: list[tuple] = []
    first = place
    for number, one in enumerate(properties if count else ()):
        if one.length is not None:
            length = int(np.frombuffer(body, one.length, 1, first)[0])
            fields.append((f"length {number}", one.length))
            first += one.length.itemsize
        fields.append((one.name, one.dtype, (length,)) if one.length is not None else (one.name, one.dtype))
        first += one.dtype.itemsize * (length if one.length is not None else 1)
    row = np.dtype(fields)
    if place + count * row.itemsize <= len(body):
        rows = np.frombuffer(body, row, count, place) if count else np.zeros(0, row)
        lengths = [name for name in row.names or () if name.startswith("length ")]
        if all((rows[name] == rows[name][:1]).all() for name in lengths):  # as where all faces are triangles
            return {name: rows[name] for name in row.names or ()}, place + count * row.itemsize
    columns: dict[str, list] = {one.name: [] for one in properties}
    for _ in range(count):
        for one in properties:
            length = 1
            if one.length is not None:
                length = int(np.frombuffer(body, one.length, 1, place)[0])
                place += one.length.itemsize
            columns[one.name].append(np.frombuffer(body, one.dtype, length, place))
            place += one.dtype.itemsize * length
    return columns, place


READERS: dict[str, Callable[[bytes], _Read]] = {".obj": _read_obj, ".off": _read_off, ".ply": _read_ply}
