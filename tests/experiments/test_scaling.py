"""The benchmark of how costs grow: powers that are known, exchanges counted by hand, and its smallest form."""

import json
import sys

import numpy as np
import pytest

from experiments.benchmarks import scaling

HLO = """
%body (p: f32[8]) -> f32[8] {
  %all-gather.1 = s32[2,4]{1,0} all-gather(s32[1,4]{1,0} %x), channel_id=3, dimensions={0}
}
ENTRY %main {
  %all-reduce.2 = (f32[3,5]{1,0}, bf16[7]{0}, /*index=2*/f32[]) all-reduce(%a, %b, %c), to_apply=%add
  %start = f32[10]{0} all-reduce-start(f32[10]{0} %d), to_apply=%add
  %done = f32[10]{0} all-reduce-done(f32[10]{0} %start)
  %other = f32[1000]{0} add(%all-reduce.2, %all-reduce.2)
}
"""


def test_exchanges_are_counted_once_by_kind():
    found = scaling.collectives(HLO)
    assert found["count"] == {"all-gather": 1, "all-reduce": 2}
    assert found["bytes"] == {"all-gather": 32, "all-reduce": 4 * 15 + 2 * 7 + 4 + 40}
    assert found["bytes_per_step"] == 150


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_power_is_found_in_the_larger_half(power):
    rows = [{"value": 2**n, "ms": 3.0 * 2 ** (power * n), "planned_mb": 7 * 2**n} for n in range(6)]
    for row in rows[:3]:
        row["ms"] = 1000.0  # what is constant hides the growth of small sizes
    found = scaling.summary(rows)
    assert found["exponent_of_time"] == power
    assert found["exponent_of_memory"] == 1
    assert found["bytes_for_one_more"] == 7 * 2**20
    assert scaling.summary(rows[3:5])["exponent_of_time"] == power


@pytest.mark.slow
def test_growth_is_measured_in_its_smallest_form(monkeypatch, capsys, tmp_path):
    words = ["--quick", "--rounds=1", "--series=K", "--series=devices"]
    files = [f"--figure={tmp_path / 'f.png'}", f"--out={tmp_path / 'r.json'}"]
    monkeypatch.setattr(sys, "argv", ["scaling", *words, *files])
    assert scaling.main() == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert [row["value"] for row in result["series"]["K"]["rows"]] == [64, 256]
    for row in result["series"]["K"]["rows"]:
        low, high = row["range"]
        assert 0 < low <= row["ms"] <= high
        assert row["planned_mb"] > 0
        assert row["peak_mb"] > 50
    assert np.isfinite(result["series"]["K"]["exponent_of_time"])
    exchanged = result["collectives"]
    assert exchanged["devices"] == 8
    # Gradients are summed over the devices, and little else is sent. Convolutions on a CPU are sums of matrix products,
    # and XLA sends the gradient of each product by itself, overlapping taps included: 3.3 times the parameters.
    assert exchanged["bytes_of_parameters"] <= exchanged["bytes_per_step"] < 4 * exchanged["bytes_of_parameters"]
