import functools
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.measure

import ntk_inr as ni
from ntk_inr.tasks import mesh_file
from ntk_inr.tasks.eikonal import EikonalLoss
from ntk_inr.tasks.grid import grid_coordinates
from ntk_inr.tasks.mesh_distance import MeshDistance
from ntk_inr.tasks.mesh_file import load_solid, save_mesh
from ntk_inr.tasks.polygon_file import read_polygons
from ntk_inr.tasks.shape import shape_task
from ntk_inr.tasks.solids import SOLIDS, gradient
from ntk_inr.tasks.surface import extract_surface, face_normals, inside_on_grid, sample_surface
from ntk_inr.tasks.triangulation import triangulate

trimesh = pytest.importorskip("trimesh")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def bracket():
    """A closed mesh with long and short edges, a hole through it, and reflex edges."""
    mesh = trimesh.creation.annulus(0.3, 0.7, 0.9, sections=24)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(0.7, [1, 2, 3]))
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def every_triangle(points, vertices, faces):
    """Distance by dense sampling of barycentric coordinates, and sign by the solid angle: slow and simple."""
    a, b, c = (vertices[faces[:, i]][None] - points[:, None] for i in range(3))
    lengths = [np.linalg.norm(side, axis=2) for side in (a, b, c)]
    volume = np.einsum("nfi,nfi->nf", a, np.cross(b, c))
    dots = [np.einsum("nfi,nfi->nf", u, v) for u, v in ((a, b), (b, c), (c, a))]
    below = np.prod(lengths, axis=0) + dots[0] * lengths[2] + dots[1] * lengths[0] + dots[2] * lengths[1]
    winding = 2 * np.arctan2(volume, below).sum(axis=1) / (4 * np.pi)
    u, v = np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 1, 40))
    u, v = u[u + v <= 1], v[u + v <= 1]
    best = np.full(len(points), np.inf)
    for p, q, r in vertices[faces]:
        cloud = p + u[:, None] * (q - p) + v[:, None] * (r - p)
        best = np.minimum(best, np.linalg.norm(points[:, None] - cloud, axis=2).min(axis=1))
    return best, winding > 0.5


def test_mesh_distance_against_every_triangle(rng, bracket):
    points = rng.uniform(-1, 1, (100, 3))
    found = MeshDistance(*bracket)(points)
    best, inside = every_triangle(points, *bracket)
    np.testing.assert_array_equal(found < 0, inside)
    assert 8 < inside.sum() < 92
    # Sampled places are never nearer than the nearest, and not much farther.
    assert (np.abs(found) <= best + 1e-12).all()
    np.testing.assert_allclose(np.abs(found), best, atol=0.01)


@pytest.mark.parametrize("name", ["sphere", "torus"])
def test_mesh_distance_against_closed_forms(rng, name):
    mesh = extract_surface(SOLIDS[name](grid_coordinates((48,) * 3).astype(float)).reshape((48,) * 3))
    points = rng.uniform(-1, 1, (400, 3))
    np.testing.assert_allclose(MeshDistance(mesh.vertices, mesh.faces)(points), SOLIDS[name](points), atol=3e-3)


def test_one_giant_triangle_among_small_ones_is_found(rng):
    box = trimesh.creation.box((1.8, 1.8, 1.8)).subdivide_loop(0)
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.2)
    ball.invert()  # a cavity
    both = trimesh.util.concatenate([box, ball])
    points = rng.uniform(-0.9, 0.9, (300, 3))
    wall = np.abs(points).max(axis=1) - 0.9
    hollow = 0.2 - np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(MeshDistance(both.vertices, both.faces)(points), np.maximum(wall, hollow), atol=4e-3)


def test_inside_on_a_grid_agrees_with_the_distance(bracket):
    points = grid_coordinates((20,) * 3).astype(float)
    expected = MeshDistance(*bracket)(points) < 0
    np.testing.assert_array_equal(inside_on_grid(*bracket, 20).ravel(), expected)


@pytest.mark.parametrize("name", list(SOLIDS))
def test_bundled_solids(rng, name):
    field = SOLIDS[name]
    a = rng.uniform(-1, 1, (4000, 3))
    b = a + rng.normal(0, 0.05, a.shape)
    # Never larger than the distance: no two values differ by more than their points.
    assert (np.abs(field(a) - field(b)) <= np.linalg.norm(a - b, axis=1) + 1e-12).all()
    if name in ("sphere", "torus"):
        np.testing.assert_allclose(np.linalg.norm(gradient(field, a), axis=1), 1, atol=1e-5)
    solid = shape_task(name, points=10).solid
    points, normals = solid.sample(500, rng)
    assert np.median(np.abs(field(points))) < 1e-6
    assert np.abs(field(points)).max() < 5e-3
    # Normals point out.
    assert np.mean(field(points + 0.01 * normals) > 0) > 0.99


def test_marching_cubes_close_what_leaves_the_cube():
    mesh = extract_surface(-np.ones((8, 8, 8)))
    volume = np.einsum("fi,fi->f", mesh.vertices[mesh.faces[:, 0]], face_normals(mesh.vertices, mesh.faces)).sum() / 6
    assert 7.5 < volume < 8  # corners are cut off; faces that look inside would make it negative
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).is_watertight
    assert len(extract_surface(np.ones((8, 8, 8))).faces) == 0
    assert len(extract_surface(np.full((8, 8, 8), np.nan)).faces) == 0


def test_surface_samples_are_uniform_by_area(rng):
    vertices = np.array([[0.0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 1]])
    points, normals = sample_surface(vertices, np.array([[0, 1, 2], [0, 2, 3]]), 20_000, rng)
    np.testing.assert_allclose((points[:, 2] == 0).mean(), 0.75, atol=0.02)
    np.testing.assert_allclose(points[points[:, 2] == 0].mean(axis=0), [1, 1 / 3, 0], atol=0.02)
    np.testing.assert_allclose(np.unique(np.abs(normals), axis=0), [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize("name", ["sphere", "csg"])
def test_the_true_field_scores_full_marks(name):
    task = shape_task(name, points=100, resolution=40)
    field = task.solid.field
    scores = task.scores(task.reconstruct(lambda x: field(x.astype(float))[:, None]))
    assert scores["iou"] == 1.0
    assert scores["fscore"] > 0.97
    assert scores["chamfer"] < 0.01
    logits = shape_task(name, kind="occupancy", points=100, resolution=40)
    assert logits.scores(logits.reconstruct(lambda x: -field(x.astype(float))[:, None]))["iou"] == 1.0
    empty = task.scores(task.reconstruct(lambda x: np.ones((len(x), 1))))
    assert empty == {"iou": 0.0, "chamfer": np.inf, "fscore": 0.0}


def test_iou_of_a_smaller_ball():
    task = shape_task("sphere", points=100, resolution=64)
    smaller = task.reconstruct(lambda x: np.linalg.norm(x, axis=1, keepdims=True) - 0.6)
    scores = task.scores(smaller)
    np.testing.assert_allclose(scores["iou"], (0.6 / 0.75) ** 3, rtol=0.02)
    np.testing.assert_allclose(scores["chamfer"], 0.15, rtol=0.02)


def test_what_is_known_at_the_points():
    sdf, occupancy, eikonal = (shape_task("torus", kind=k, points=400) for k in ("sdf", "occupancy", "eikonal"))
    field = SOLIDS["torus"]
    np.testing.assert_allclose(sdf.y[:, 0], field(sdf.x.astype(float)), atol=1e-5)
    assert (sdf.y[:40] == 0).all()
    np.testing.assert_array_equal(occupancy.y[:, 0] == 1, field(occupancy.x.astype(float)) < 0)
    on = eikonal.y[:, 0] == 1
    assert on.sum() == 200
    # Outside the box around the surface, at least as far as the box is.
    outside = eikonal.y[:, 0] == -1
    assert (np.abs(eikonal.x[outside]) > [0.8, 0.8, 0.25]).any(axis=1).all()
    assert (eikonal.y[outside, 1] <= field(eikonal.x[outside].astype(float))).all()
    assert outside.sum() > 100
    np.testing.assert_allclose(eikonal.y[on, 1:], gradient(field, eikonal.x[on].astype(float)), atol=1e-4)
    assert sdf.digest != occupancy.digest != eikonal.digest


def test_the_exact_field_has_no_eikonal_loss():
    task = shape_task("sphere", kind="eikonal", points=200, eikonal_loss=EikonalLoss(away=0.0))
    observed = task.observe(lambda params, x: jnp.linalg.norm(x, axis=1, keepdims=True) - params)
    loss = jax.jit(lambda radius: task.loss(observed(radius, task.x), jnp.asarray(task.y)))
    np.testing.assert_allclose(loss(0.75), 0, atol=1e-5)
    np.testing.assert_allclose(loss(0.65)[:100], 0.1, atol=1e-5)
    # A larger ball is nearer than what is known to be outside allows.
    assert loss(0.95)[100:].max() > 0.05
    # At a point without slope the loss still has a gradient.
    slope = jax.jit(jax.grad(lambda p: EikonalLoss()(p, jnp.ones((1, 4))).sum()))(jnp.zeros((1, 4)))
    assert np.isfinite(slope).all()
    with pytest.raises(ValueError, match="normal is -1"):
        EikonalLoss(normal=-1)


def test_the_kernel_of_value_and_gradient(key):
    task = shape_task("sphere", kind="eikonal", points=12)
    apply, params = ni.init(ni.CoordinateMLP(features=8, depth=1, out=1, activation=jnp.tanh), key, task.x)
    measured = task.observe(apply)
    assert measured(params, task.x).shape == (12, 4)
    jacobian = jax.jit(jax.jacobian(lambda p: measured(p, task.x)))(params)
    rows = np.concatenate([np.reshape(leaf, (48, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1)
    expected = np.einsum("icp,jcp->ij", *[rows.reshape(12, 4, -1)] * 2) / 4
    np.testing.assert_allclose(ni.ntk(measured, params, task.x), expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_a_mesh_keeps_its_unit(tmp_path):
    mesh = trimesh.creation.box((20, 40, 10))
    mesh.apply_translation([100, 0, 0])
    mesh.invert()  # faces inside out are turned
    mesh.export(tmp_path / "box.stl")
    task = shape_task(tmp_path / "box.stl", points=200, resolution=48)
    np.testing.assert_allclose(np.abs(task.solid.vertices).max(axis=0), [0.45, 0.9, 0.225])
    found = task.reconstruct(lambda x: task.solid.field(x)[:, None])
    assert task.scores(found)["iou"] == 1.0
    saved = trimesh.load_mesh(task.save(found, tmp_path / "out.ply"))
    np.testing.assert_allclose(saved.bounds, mesh.bounds, atol=1.0)
    assert saved.volume > 0
    with pytest.raises(FileExistsError):
        task.save(found, tmp_path / "out.ply")
    with pytest.raises(ValueError, match="no surface to save"):
        task.save(extract_surface(np.ones((8, 8, 8))), tmp_path / "none.ply")


def test_a_cavity_stays_one(tmp_path):
    outer, inner = (trimesh.creation.icosphere(subdivisions=3, radius=radius) for radius in (2.0, 1.0))
    inner.invert()
    trimesh.util.concatenate([outer, inner]).export(tmp_path / "shell.ply")
    solid = shape_task(tmp_path / "shell.ply", points=10).solid
    middle, wall, beyond = np.array([[0.0, 0, 0], [0.68, 0, 0], [0.97, 0, 0]])
    np.testing.assert_array_equal(solid.field(np.stack([middle, wall, beyond])) < 0, [False, True, False])
    assert not solid.inside(9)[4, 4, 4]


@pytest.mark.parametrize("case", ["overlapping", "nested", "one inside out"])
def test_bodies_whose_nearest_face_does_not_tell_the_inside_are_refused(tmp_path, case):
    one, other = (trimesh.creation.icosphere(subdivisions=2, radius=radius) for radius in (1.0, 0.8))
    if case != "nested":
        other.apply_translation([1.2 if case == "overlapping" else 3.0, 0, 0])
    if case == "one inside out":
        other.invert()
    trimesh.util.concatenate([one, other]).export(tmp_path / "two.ply")
    with pytest.raises(ValueError, match=r"bodies that overlap.*unite"):
        shape_task(tmp_path / "two.ply", points=10)
    assert shape_task(tmp_path / "two.ply", kind="eikonal", points=10, resolution=8).metric == "fscore"


def test_a_seam_of_the_texture_is_no_hole(tmp_path):
    box = trimesh.creation.box()
    lines = [f"v {x} {y} {z}" for x, y, z in box.vertices] + [f"vt {i / 36} 0.5" for i in range(36)]
    for number, face in enumerate(box.faces + 1):
        lines.append("f " + " ".join(f"{v}/{3 * number + corner + 1}" for corner, v in enumerate(face)))
    (tmp_path / "box.obj").write_text("\n".join(lines))
    assert shape_task(tmp_path / "box.obj", points=10).solid.field is not None


def test_an_open_mesh_is_refused_unless_no_inside_is_needed(tmp_path):
    mesh = trimesh.creation.icosphere(subdivisions=2)
    mesh.update_faces(np.arange(len(mesh.faces)) > 20)
    mesh.export(tmp_path / "open.obj")
    for kind in ("sdf", "occupancy"):
        with pytest.raises(ValueError, match=r"not watertight.*fill_holes"):
            shape_task(tmp_path / "open.obj", kind=kind)
    task = shape_task(tmp_path / "open.obj", kind="eikonal", points=100, resolution=16)
    assert task.metric == "fscore"
    assert set(task.scores(task.reconstruct(lambda x: x[:, :1]))) == {"chamfer", "fscore"}


def obj_of(vertices, faces):
    lines = ["v " + " ".join(map(repr, corner)) for corner in np.asarray(vertices, float).tolist()]
    return "\n".join([*lines, *("f " + " ".join(str(place + 1) for place in face) for face in faces)]).encode()


def negative_obj_of(vertices, faces):
    """With each face's corners just before it, counted from there."""
    corners = np.asarray(vertices, float).tolist()
    blocks = [
        "\n".join("v " + " ".join(map(repr, corners[place])) for place in face)
        + "\nf "
        + " ".join(f"{k - len(face)}//1" for k in range(len(face)))
        for face in faces
    ]
    return "\n".join(blocks).encode()


def off_of(vertices, faces):
    rows = [*np.asarray(vertices, float).tolist(), *([len(face), *face, 255] for face in faces)]
    lines = ["OFF # corners", f"{len(vertices)} {len(faces)} 0", "", *(" ".join(map(repr, row)) for row in rows)]
    return "\n".join(lines).encode()


def ply_of(vertices, faces, order="ascii"):
    head = (
        f"ply\nformat {order} 1.0\ncomment by hand\nelement vertex {len(vertices)}\nproperty double x\n"
        f"property double y\nproperty float64 z\nproperty uchar red\nelement face {len(faces)}\n"
        "property list uchar int vertex_indices\nproperty float quality\nend_header\n"
    ).encode()
    rows = [("dddB", *corner, 7) for corner in np.asarray(vertices, float).tolist()]
    rows += [(f"B{len(face)}if", len(face), *face, 0.5) for face in faces]
    if order == "ascii":
        return head + "\n".join(" ".join(map(repr, row[1:])) for row in rows).encode()
    sign = "<" if order == "binary_little_endian" else ">"
    return head + b"".join(struct.pack(sign + row[0], *row[1:]) for row in rows)


WRITERS = {
    "obj": (".obj", obj_of),
    "obj by negative numbers": (".obj", negative_obj_of),
    "off": (".off", off_of),
    "ply": (".ply", ply_of),
    "little-endian ply": (".ply", functools.partial(ply_of, order="binary_little_endian")),
    "big-endian ply": (".ply", functools.partial(ply_of, order="binary_big_endian")),
}


def prism(outline, begin=0):
    """Return a solid between two polygons of n corners, of which ``begin`` is the first, with n faces of four."""
    outline, n = np.roll(outline, -begin, axis=0), len(outline)
    sides = [[i, (i + 1) % n, n + (i + 1) % n, n + i] for i in range(n)]
    return [(x, y, z) for z in (0, 1) for x, y in outline], [list(range(n))[::-1], list(range(n, 2 * n)), *sides]


ELL = np.array([[0, 0], [1, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]])  # with a corner on a straight side


def distance_to_ell(points):
    def box(high):
        beyond = np.abs(points - np.divide(high, 2)) - np.divide(high, 2)
        return np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)

    return np.minimum(box((2, 1, 1)), box((1, 2, 1)))  # exact outside


@pytest.fixture
def compared_coarsely(monkeypatch):
    """Spare the small meshes here most of the places at which the inside is looked at."""
    monkeypatch.setattr(mesh_file, "_COMPARED_AT", 8)


DART = np.array([[0, 0], [2, -1], [0.5, 0], [2, 1]])


@pytest.mark.parametrize("writer", list(WRITERS))
def test_concave_faces_are_cut_within_themselves(tmp_path, writer):
    suffix, write = WRITERS[writer]
    path = tmp_path / f"prism{suffix}"
    for outline, area, around in ((ELL, 3, 8), (DART, 0.5, 2 * 5**0.5 + 2 * 3.25**0.5)):
        for begin in range(len(outline)):
            path.write_bytes(write(*prism(outline, begin)))
            vertices, polygons = read_polygons(path)
            faces = triangulate(vertices, polygons)
            volume = np.einsum("fi,fi->", vertices[faces[:, 0]], face_normals(vertices, faces)) / 6
            # Triangles that lay on each other or outside would have more area.
            areas = np.linalg.norm(face_normals(vertices, faces), axis=1) / 2
            assert (volume, areas.sum()) == (pytest.approx(area), pytest.approx(2 * area + around))
            assert areas.min() > 0


@pytest.mark.usefixtures("compared_coarsely")
def test_distances_to_concave_faces(rng, tmp_path):
    (tmp_path / "ell.off").write_bytes(off_of(*prism(ELL)))
    solid = load_solid(tmp_path / "ell.off")
    points = rng.uniform(-1, 1, (300, 3))
    expected = distance_to_ell(points * solid.scale + solid.centre)
    found = solid.field(points) * solid.scale
    np.testing.assert_array_equal(found < 0, expected < 0)
    np.testing.assert_allclose(found[expected > 0], expected[expected > 0], atol=1e-12)


@pytest.mark.usefixtures("compared_coarsely")
@pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")  # scikit-image, NumPy 2.5
@pytest.mark.parametrize("name", ["cube", "octahedron", "gyroid"])
def test_triangles_without_area_are_no_holes(rng, tmp_path, name):
    """Marching cubes leaves them where a value is 0, also in what we save ourselves."""
    field = {
        "cube": lambda x: np.abs(x).max(axis=-1) - 0.5,
        "octahedron": lambda x: np.abs(x).sum(axis=-1) - 0.75,
        "gyroid": SOLIDS["gyroid"],
    }[name]
    places = np.linspace(-1, 1, 25)
    values = field(np.stack(np.meshgrid(places, places, places, indexing="ij"), axis=-1))
    vertices, faces, *_ = skimage.measure.marching_cubes(values, 0.0, spacing=(1 / 12,) * 3)
    assert face_normals(vertices, faces).any(axis=1).mean() < 1
    solid = load_solid(save_mesh(vertices - 1, faces, tmp_path / "mesh.obj"))
    points = rng.uniform(-0.9, 0.9, (300, 3))
    true = field(points * solid.scale + solid.centre)
    far = np.abs(true) > 0.1
    np.testing.assert_array_equal(solid.field(points)[far] < 0, true[far] < 0)


TETRAHEDRON = np.array([[0, 0, 0], [1, 0, 0], [0.3, 0.4, 0], [0.4, 0.3, 0.2]])
FACES = [[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]]


@pytest.mark.usefixtures("compared_coarsely")
@pytest.mark.parametrize(
    ("faces", "vertices"),
    [
        # One side of an edge is cut at the edge's middle, the other is not; a triangle without area lies between.
        ([[0, 2, 1], [0, 4, 3], [4, 1, 3], [0, 1, 4], *FACES[2:]], [*TETRAHEDRON, [0.5, 0, 0]]),
        ([*FACES, *FACES[:2]], TETRAHEDRON),
        ([*FACES, *(face[::-1] for face in FACES)], TETRAHEDRON),
        ([*FACES, FACES[0][::-1]], TETRAHEDRON),
        ([*FACES, [0, 0, 1], [2, 2, 2]], TETRAHEDRON),
        ([FACES[0][::-1], *FACES[1:3], FACES[3][::-1]], TETRAHEDRON),
        ([[2 * a, 2 * b + 1, 2 * c] for a, b, c in FACES], np.repeat(TETRAHEDRON, 2, axis=0)),
        ([[0, 2, 1], [0, 1, 3], [4, 2, 3], [2, 0, 3]], [*TETRAHEDRON, [1 + 1e-10, 0, 0]]),
    ],
    ids=["sliver", "repeated", "two-sided", "one two-sided", "collapsed", "turned", "doubled corners", "rounded"],
)
def test_untidy_meshes_are_the_tidy_one(rng, tmp_path, faces, vertices):
    points = rng.uniform(-1, 1, (300, 3))
    tidy, untidy = tmp_path / "tidy.obj", tmp_path / "untidy.obj"
    tidy.write_bytes(obj_of(TETRAHEDRON, FACES))
    untidy.write_bytes(obj_of(vertices, faces))
    np.testing.assert_allclose(load_solid(untidy).field(points), load_solid(tidy).field(points), atol=1e-8)


@pytest.mark.usefixtures("compared_coarsely")
@pytest.mark.parametrize("unit", [1e-9, 1e20])
def test_the_unit_changes_nothing(tmp_path, unit):
    mesh = trimesh.creation.icosphere(subdivisions=1, radius=unit)
    mesh.export(tmp_path / "ball.ply")
    solid = load_solid(tmp_path / "ball.ply")
    assert solid.field is not None
    for name in ("again.obj", "again.off"):
        again = load_solid(save_mesh(solid.vertices * solid.scale + solid.centre, solid.faces, tmp_path / name))
        np.testing.assert_allclose(again.vertices, solid.vertices, atol=1e-6)


def test_damaged_meshes_are_refused_by_name(tmp_path):
    for suffix, write in WRITERS.values():
        whole = write(TETRAHEDRON, FACES)
        wrong = b"hello" if write is negative_obj_of else write(TETRAHEDRON, [*FACES[:3], [2, 0, 9]])
        for content in (whole[: len(whole) // 3], whole[: -len(whole) // 9], wrong):
            path = tmp_path / f"bad{suffix}"
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f"bad{suffix}.*(can't be read|holds no triangles|not watertight)"):
                shape_task(path, points=10)


def test_what_is_no_mesh(tmp_path, unchecked):
    (tmp_path / "text.stl").write_text("hello")
    (tmp_path / "empty.obj").write_text("")
    (tmp_path / "points.obj").write_text("v 0 0 0\nv 1 0 0\n")
    (tmp_path / "mesh.xyzzy").write_text("v 0 0 0")
    for name, message in [
        ("text.stl", "triangle mesh|no triangles"),
        ("empty.obj", "0 bytes"),
        ("points.obj", "no triangles"),
        ("mesh.xyzzy", "can't be read"),
    ]:
        with pytest.raises(ValueError, match=message):
            shape_task(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="gyroid"):
        shape_task("cube")
    with pytest.raises(ValueError, match="Did you mean 'sdf'"):
        shape_task("sphere", kind="sfd")
