import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import skimage.transform

import ntk_inr as ni
from ntk_inr.tasks.radon import filtered_back_projection, line_integrals
from ntk_inr.tasks.tomography import tomography_task

# An odd size, for which scikit-image turns images about their middle.
SIZE = 65


@pytest.fixture(scope="module")
def phantom():
    return tomography_task("shepp-logan", angles=40, size=SIZE)


def test_the_sinogram_agrees_with_scikit_image(phantom):
    expected = skimage.transform.radon(phantom.image[:, :, 0], np.rad2deg(phantom.angles)).T * 2 / SIZE
    # Its sums over turned pixels and our integrals are two discretisations of the same.
    assert np.linalg.norm(phantom.sinogram - expected) < 0.02 * np.linalg.norm(expected)
    straight = np.argmin(np.abs(phantom.angles))
    # Without turning, a column of pixels is a sum for both.
    np.testing.assert_allclose(phantom.sinogram[straight], expected[straight], atol=0.02)


def test_a_smooth_image_agrees_closely():
    row, column = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    image = np.exp(-((row - 0.3) ** 2 + (column + 0.2) ** 2) / 0.05)
    image[np.hypot(row, column) > 0.9] = 0
    task = tomography_task(image, angles=[0, 30, 77, 90, 135], size=SIZE)
    expected = skimage.transform.radon(task.image[:, :, 0], [0, 30, 77, 90, 135]).T * 2 / SIZE
    np.testing.assert_allclose(task.sinogram, expected, atol=2e-3 * expected.max())


def test_a_disc_off_the_middle_has_known_integrals():
    rng = np.random.default_rng(0)
    rays = jnp.asarray(rng.uniform(-1, 1, (200, 2)))
    centre = jnp.array([[0.3, -0.2]])

    def field(radius, x):
        return (jnp.linalg.norm(x - centre, axis=1, keepdims=True) < radius).astype(x.dtype)

    theta = (np.asarray(rays[:, 0]) + 1) * np.pi / 2
    distance = np.asarray(rays[:, 1]) - (-0.3 * np.sin(theta) - 0.2 * np.cos(theta))
    expected = 2 * np.sqrt(np.maximum(0.4**2 - distance**2, 0))
    np.testing.assert_allclose(line_integrals(field, 4000)(0.4, rays)[:, 0], expected, atol=2e-3)


def test_integrals_are_differentiable():
    rays = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (20, 2)), jnp.float32)
    integrals = line_integrals(lambda params, x: jnp.exp(params * x[:, :1]) + x[:, 1:] ** 2, samples=50)
    slope, step = jax.jit(jax.jacobian(integrals))(0.7, rays), 1e-2
    difference = (integrals(0.7 + step, rays) - integrals(0.7 - step, rays)) / (2 * step)
    np.testing.assert_allclose(slope, difference, atol=1e-4)


def test_the_kernel_of_integrals(key):
    task = tomography_task(angles=4, size=8, samples=6)
    apply, params = ni.init(ni.variant("relu", features=16, depth=2, out=1), key, task.x)
    measured = task.observe(apply)
    jacobian = jax.jit(jax.jacobian(lambda p: measured(p, task.x)))(params)
    rows = np.concatenate([np.reshape(leaf, (32, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1)
    expected = rows @ rows.T
    np.testing.assert_allclose(ni.ntk(measured, params, task.x), expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_back_projection_agrees_with_scikit_image(phantom):
    assert phantom.scores(phantom.back_projection)["fbp_psnr"] > 20
    sinogram = phantom.sinogram.T * SIZE / 2
    expected = skimage.transform.iradon(sinogram, np.rad2deg(phantom.angles), filter_name="ramp")
    found = phantom.back_projection[:, :, 0]
    middle = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2)) < 0.95
    np.testing.assert_allclose(found[middle], np.clip(expected, 0, 1)[middle], atol=5e-3)


def test_back_projection_of_a_disc_has_its_value():
    angles = np.arange(180) * np.pi / 180
    offsets = (2 * np.arange(128) + 1) / 128 - 1
    sinogram = np.tile(2 * np.sqrt(np.maximum(0.5**2 - offsets**2, 0)), (180, 1))
    inside = filtered_back_projection(sinogram, angles, np.array([[0.0, 0.0], [0.2, -0.2], [0.7, 0.5]]))
    np.testing.assert_allclose(inside, [1, 1, 0], atol=0.02)


def test_back_projection_weighs_angles_by_the_part_of_the_turn_that_they_stand_for():
    offsets = (2 * np.arange(128) + 1) / 128 - 1
    projection = 2 * np.sqrt(np.maximum(0.5**2 - offsets**2, 0))
    dense, sparse = np.arange(0, 90, 1), np.arange(90, 180, 2)
    angles = np.deg2rad(np.concatenate([sparse, dense]))
    middle = filtered_back_projection(np.tile(projection, (len(angles), 1)), angles, np.zeros((1, 2)))
    np.testing.assert_allclose(middle, 1, atol=0.02)
    # Angles that were measured several times share their part.
    again = filtered_back_projection(
        np.tile(projection, (3 * 60, 1)), np.deg2rad(np.repeat(np.arange(0, 180, 3), 3)), np.zeros((1, 2))
    )
    np.testing.assert_allclose(again, 1, atol=0.02)
    # A wedge that was not measured adds nothing.
    wedge = filtered_back_projection(np.tile(projection, (45, 1)), np.deg2rad(dense[:45]), np.zeros((1, 2)))
    np.testing.assert_allclose(wedge, 0.25, atol=0.02)


def test_the_image_itself_scores_full_marks(phantom):
    lookup = {tuple(place): value for place, value in zip(*_pixels(phantom), strict=True)}
    found = phantom.reconstruct(lambda x: np.array([[lookup[tuple(place)]] for place in x.tolist()]))
    assert phantom.scores(found)["psnr"] == np.inf
    # A network that is 1 everywhere is not blamed for what no ray meets.
    assert phantom.reconstruct(lambda x: np.ones((len(x), 1)))[0, 0, 0] == 0


def _pixels(task):
    centres = ((2 * np.arange(SIZE) + 1) / SIZE - 1).astype(np.float32).tolist()
    return [(r, c) for r in centres for c in centres], task.image.ravel()


def test_wide_images_are_cut_to_their_middle():
    image = np.zeros((20, 40))
    image[:, 10:30] = 0.5
    task = tomography_task(image, angles=2, size=20)
    np.testing.assert_allclose(task.image[10, :, 0], 0.5)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (np.ones((9, 9)), {"size": 16}, "pass size=9 or less"),
        (np.zeros((9, 9)), {"size": 8}, "nothing to measure"),
        ("shepp-logan", {"angles": [0.0, 180.0]}, "below 180"),
        ("shepp-logan", {"angles": 0}, "angles is 0"),
        ("shepp-logan", {"size": 4}, "size is 4"),
    ],
)
def test_bad_settings(source, options, message):
    with pytest.raises(ValueError, match=message):
        tomography_task(source, **options)
