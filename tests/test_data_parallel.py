"""Training over a mesh, in a process that has several simulated devices."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import ntk_inr as ni

WORKER = pathlib.Path(__file__).with_name("mesh_worker.py")


@pytest.mark.slow
def test_four_devices_train_as_one():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(WORKER.parents[1])}
    command = [sys.executable, "-W", "error", WORKER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_no_mesh(unchecked):
    with pytest.raises(TypeError, match=r"mesh is 4; expected a jax.sharding.Mesh"):
        ni.fit(lambda p, x: x @ p, np.ones((2, 1)), np.ones((4, 2)), np.ones((4, 1)), mesh=4)
