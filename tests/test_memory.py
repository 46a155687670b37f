"""How many fit a device, by what it says of its memory."""

from types import SimpleNamespace

import pytest

from vqvae_jax import memory

GIB = 2**30


@pytest.mark.parametrize(
    ("stats", "expected"),
    [(None, 5), ({}, 5), ({"bytes_limit": 4 * GIB}, 5), ({"bytes_limit": 60 * GIB}, 35)],
)
def test_more_fit_a_larger_device_and_a_cpu_keeps_its_number(monkeypatch, stats, expected):
    device = SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [device])
    assert memory.at_once(5) == expected
    assert memory.device_bytes() == (stats or {}).get("bytes_limit", 0)


def test_this_machine_is_asked_without_an_error():
    assert memory.at_once(7) == 7
