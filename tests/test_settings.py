"""Settings by name: found, replaced, traced."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr.networks.catalogue import written
from ntk_inr.networks.settings import setting_name, takes_floats, with_settings
from tests.conftest import quick

REAL = {"siren": "activation.omega", "rff": "encoding.scale", "gauss": "activation.width", "wire": "omega"}


def values_of(net, x):
    apply, params = ni.init(net, jax.random.key(0), x)
    return np.asarray(apply(params, x))


def test_a_replaced_setting_is_that_of_a_network_built_with_it(x):
    by_name = with_settings(ni.variant("rff", features=16), {"encoding.scale": 2.0})
    built = ni.variant("rff", features=16, encoding=ni.GaussianFourier(features=128, scale=2.0))
    np.testing.assert_array_equal(values_of(by_name, x), values_of(built, x))
    by_name = with_settings(ni.variant("pe+sphere", features=16), {"normalization.radius": 2.0})
    assert by_name.normalization == ni.Sphere(placement="hidden_post", radius=2.0)


def test_names_are_short_where_that_is_clear():
    rff = ni.variant("rff")
    assert setting_name(rff, "scale") == setting_name(rff, "sigma") == "encoding.scale"
    assert setting_name(rff, "features") == setting_name(rff, "width") == "features"
    assert setting_name(ni.variant("siren"), "omega_0") == "activation.omega"
    assert setting_name(ni.variant("gauss"), "width") == "activation.width"
    both = ni.variant("siren", modulation=ni.FourierModulation())
    with pytest.raises(ValueError, match=r"ambiguous; write activation\.omega or modulation\.omega"):
        setting_name(both, "omega")
    with pytest.raises(ValueError, match=r"unknown setting of CoordinateMLP 'scael'.*Did you mean 'scale'"):
        setting_name(rff, "scael")


class Waves(nn.Module):
    """A module of a user's own, which declares no settings."""

    omega: float = 30
    features: int = 8

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.sin(self.omega * nn.Dense(self.features)(x)))


def test_the_numbers_of_an_own_module_are_settings(x):
    assert ni.settings_of(Waves()) == {"omega": 30, "features": 8}
    assert (takes_floats(Waves(), "omega"), takes_floats(Waves(), "features")) == (True, False)
    apply, params = ni.init(Waves(), jax.random.key(0), x, settings={"omega": 12.5})
    np.testing.assert_allclose(apply(params, x), values_of(Waves(omega=12.5), x), rtol=1e-6)


def test_a_name_may_carry_settings():
    assert ni.settings_of(ni.variant("rff:scale=4,depth=3")) == ni.settings_of(
        with_settings(ni.variant("rff"), {"encoding.scale": 4.0, "depth": 3})
    )
    assert ni.variant("pe:bands=4", features=8, out=2).clone(features=256, out=1) == with_settings(
        ni.variant("pe"), {"bands": 4}
    )
    assert written("rff:depth=3", {"encoding.scale": 0.5}) == "rff:depth=3,encoding.scale=0.5"
    with pytest.raises(ValueError, match="Did you mean 'features'"):
        ni.variant("rff:featuers=3")
    with pytest.raises(ValueError, match="has the setting 'omega=ten'; write name=number"):
        ni.variant("siren:omega=ten")


@pytest.mark.parametrize("name", ["omega", "omega_0", "activation.omega"])
def test_the_infinite_kernel_takes_the_same_names(name, x):
    kernel = ni.infinite_kernel(ni.variant("siren:omega=3"))
    expected = np.asarray(ni.infinite_kernel(ni.variant("siren:omega=5"))(x).ntk)
    # Entries far below the diagonal have its rounding error.
    np.testing.assert_allclose(kernel(x, hyper={name: 5.0}).ntk, expected, rtol=1e-5, atol=1e-6 * expected.max())


def test_replaced_settings_pass_the_checks_of_their_classes(unchecked):
    with pytest.raises(ValueError, match="omega is -1"):
        with_settings(ni.variant("siren"), {"activation.omega": -1.0})
    with pytest.raises(TypeError, match=r"bands is 2\.5"):
        with_settings(ni.variant("pe"), {"encoding.bands": 2.5})


@pytest.mark.parametrize("name", quick(REAL))
def test_one_compilation_serves_all_values_of_a_real_setting(name, x, unchecked):
    net, setting = ni.variant(name, features=16, depth=2), REAL[name]
    models = [ni.init(net, jax.random.key(0), x, settings={setting: value}) for value in (0.5, 3.0)]
    structures = [jax.tree.structure(model) for model in models]
    assert structures[0] == structures[1]
    for (apply, params), value in zip(models, (0.5, 3.0), strict=True):
        plain, own = ni.init(with_settings(net, {setting: value}), jax.random.key(0), x)
        np.testing.assert_allclose(apply(params, x), plain(own, x), rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(ni.ntk(apply, params, x), ni.ntk(plain, own, x), rtol=1e-3)


def test_what_can_not_be_traced_is_built_plainly(x):
    for name, values in [("bacon", {"bandwidth": 8.0}), ("pe+batch", {"normalization.momentum": 0.5})]:
        apply, params = ni.init(ni.variant(name, features=16, depth=2), jax.random.key(0), x, settings=values)
        plain, own = ni.init(with_settings(ni.variant(name, features=16, depth=2), values), jax.random.key(0), x)
        assert jax.tree.structure(apply) == jax.tree.structure(plain)
        np.testing.assert_array_equal(apply(params, x), plain(own, x))


def test_settings_of_init_have_short_names_and_are_checked(x):
    net = ni.variant("siren", features=16, depth=2)
    found, expected = (
        ni.init(net, jax.random.key(0), x, settings=settings)
        for settings in ({"omega_0": 7.0, "width": 8}, {"activation.omega": 7.0, "features": 8})
    )
    np.testing.assert_array_equal(found[0](found[1], x), expected[0](expected[1], x))
    with pytest.raises(ValueError, match="setting of CoordinateMLP"):
        ni.init(net, jax.random.key(0), x, settings={"bands": 3})
    with pytest.raises(ValueError, match="expected a finite number above 0"):
        ni.init(net, jax.random.key(0), x, settings={"omega_0": -7.0})


def test_arrays_as_settings_are_checked_inside_jit_too(unchecked):
    omega = jnp.float32(-1.0)
    with pytest.raises(ValueError, match="expected a finite number above 0"):
        jax.jit(lambda u: ni.networks.Sine(omega=omega)(u))(1.0)
    assert np.isfinite(jax.jit(lambda omega: ni.networks.Sine(omega=omega)(1.0))(2.0))
