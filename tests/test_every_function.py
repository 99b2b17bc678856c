"""What holds for every public function: options are checked, dtypes and scales don't matter, no mark is NaN."""

import jax
import jax.numpy as jnp
import pytest

import ntk_inr as ni
from tests.conftest import small

X = jnp.linspace(-1, 1, 12)[:, None]

OF_A_MODEL = {
    "streamed_moments": ni.streamed_moments,
    "sampled_moments": lambda *model, **options: ni.sampled_moments(*model, key=jax.random.key(0), size=4, **options),
    "variance_budget": ni.variance_budget,
    "ntk": ni.ntk,
    "training_kernel": ni.training_kernel,
}


@pytest.mark.parametrize("name", OF_A_MODEL)
@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"block": -3}, ValueError, "block is -3; expected at least 1"),
        ({"block": 2.0}, TypeError, "block is 2.0; expected a whole number"),
        ({"memory_limit": 0}, ValueError, "memory_limit is 0; expected at least 1"),
        ({"precision": "hihgest"}, ValueError, "unknown precision 'hihgest'.*Did you mean 'highest'"),
        ({"precision": None}, ValueError, "unknown precision None"),
    ],
)
def test_options_that_functions_share_are_checked_by_each(unchecked, name, option, error, message, key):
    with pytest.raises(error, match=message):
        OF_A_MODEL[name](*small("relu", key, X), X, **option)
