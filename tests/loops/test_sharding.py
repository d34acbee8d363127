"""Sharded batches: the loops agree with one device, on meshes and in `shard_map`.

JAX makes its devices when it starts, so sharded.py runs in a process with 8 of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import sharded

import rdrop

DEVICES = "--xla_force_host_platform_device_count=8"
WAYS = (
    "explicit",
    "auto",
    "units",
    "episodes of units",
    "check_vma=True",
    "check_vma=False",
)


def run(*cases):
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {DEVICES}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(rdrop.__file__).parents[1]),
    }
    result = subprocess.run(
        [sys.executable, Path(sharded.__file__), *cases],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def assert_agree(found, *cases):
    """Two programs for each way of sharding; differences are those of float32."""
    differences = found["differences"]
    names = [name for case in cases for name in differences if name.startswith(case)]
    assert len(names) == len(differences) == 2 * len(WAYS) * len(cases)
    assert all(difference < 5e-6 for difference in differences.values()), differences


def test_sharded_batches_agree_with_one_device():
    """With lengths, in values and gradients; masks do not depend on the devices.

    In `shard_map`, keys that fold in the index of the shard give each its own masks.
    """
    case = "SimpleCell:fused"
    found = run(case)
    assert_agree(found, case)
    assert found["digest"] == sharded.digest(jax.jit(sharded.masks_of)(sharded.KEYS))
    assert found["masks"] == [8, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases",
    [
        ("LSTMCell:recompute", "SimpleCell:plain"),
        ("GRUCell:fused", "MinGRUCell:recompute"),
        ("LayerNormLSTMCell:fused", "GRUCell:plain"),
        ("MinGRUCell:fused", "LSTMCell:fused"),
    ],
)
def test_every_loop_agrees_with_one_device(cases):
    assert_agree(run(*cases), *cases)
