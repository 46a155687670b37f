"""Every quantizer on eight devices gives what it gives on one: values, gradients, first and next state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from test_quantizer import CASES
from vqvae_jax.training import sharding

for name, quantizer in CASES.items():
    z_e = np.random.default_rng(0).normal(size=(16, 3, quantizer.dim)).astype(np.float32)

    @jax.jit
    def everything(z_e):
        key = jax.random.key(0)
        params, state = quantizer.init(key, z_e)

        def loss(params, z_e):
            z_q, indices, losses = quantizer({"params": params, "state": state}, z_e, key)
            return jnp.sum(z_q**3) + sum(losses.values()), (z_q, indices)

        gradients, (z_q, indices) = jax.grad(loss, (0, 1), has_aux=True)(params, z_e)
        return state, gradients, z_q, indices, quantizer.next_state({"params": params, "state": state}, z_e, indices, key)

    one, eight = everything(z_e), everything(sharding.put_rows(z_e))
    assert len(eight[2].sharding.device_set) == 8, name
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, np.max(np.abs(a))), err_msg=name)

    jax.tree.map(close, one, eight)
print(jax.device_count())
"""


@pytest.mark.slow
def test_eight_devices_equal_one():
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent))),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8"]
