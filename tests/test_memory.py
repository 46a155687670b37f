"""How many fit a device, by what it says of its memory."""

from types import SimpleNamespace

import pytest

from vqvae_jax import memory
from vqvae_jax.errors import InputError

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


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "5000", "a/b/memory.max": "max"}, 5000),
        ("0::/\n", {"memory.max": "7000"}, 7000),
        ("3:cpu:/x\n4:memory:/job/42\n0::/\n", {"memory/job/memory.limit_in_bytes": "4096"}, 4096),
        ("3:cpu:/x\n", {"memory.max": "1"}, None),
        ("0::/a\n", {"memory.max": str(2**62)}, None),
    ],
)
def test_the_memory_of_the_host_is_what_its_control_groups_leave(tmp_path, own, files, expected):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "own").write_text(own)
    machine = memory.os.sysconf("SC_PAGE_SIZE") * memory.os.sysconf("SC_PHYS_PAGES")
    assert memory.host_bytes(str(tmp_path), str(tmp_path / "own")) == (expected or machine)
    assert memory.host_bytes(str(tmp_path), str(tmp_path / "none")) == machine


def test_what_cannot_fit_is_one_line_before_it_is_tried(monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 2 * GIB)
    memory.check_fits("x", 2 * GIB)
    with pytest.raises(
        InputError, match=r"^x: this needs at least 3\.0 GiB of memory, and there are 2\.0 GiB: make it"
    ):
        memory.check_fits("x", 3 * GIB)
    monkeypatch.setattr(memory, "host_bytes", lambda: 0)  # nobody knows
    memory.check_fits("x", 2**60)
