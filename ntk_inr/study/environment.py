"""What a result was measured with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Return versions and device, as studies and benchmarks state them."""
    packages = ("ntk_inr", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")
    device = jax.local_devices()[0]
    return {
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": f"{device.platform}: {device.device_kind}",
        "cores": os.cpu_count(),
        "devices": jax.local_device_count(),
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",  # type: ignore[attr-defined]
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        # Then times of compilation are those of reading.
        "compilation_cache": bool(jax.config.jax_compilation_cache_dir),  # type: ignore[attr-defined]
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
