"""The benchmarks of steps in their smallest form: every figure is there, and what is wrong is an exit status of 1."""

import json
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import accelerator, nearest, quantizer_steps, train_step
from experiments.benchmarks.step_cases import CASES
from vqvae_jax.models.trunk import Trunk


def called(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    return module.main()


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


class WrongGradient:
    """A network whose values are right, and whose gradients are too large by a thousandth."""

    def __init__(self, network):
        self.network = network

    def lazy_init(self, *arguments):
        return self.network.lazy_init(*arguments)

    def apply(self, *arguments):
        x = self.network.apply(*arguments)
        return x + 1e-3 * (x - jax.lax.stop_gradient(x))


def test_operations_of_a_step_are_those_that_xla_counts():
    case = CASES["pixels128"]
    plain = train_step.plain(case.build())
    x = jax.ShapeDtypeStruct((case.batch, 128, 128, 3), jnp.float32)
    z = jax.ShapeDtypeStruct((case.batch, 32, 32, 64), jnp.float32)

    def forward(x, z):
        encoder, decoder = plain.trunk.encoder(64), plain.trunk.decoder()
        variables = [jax.eval_shape(n.init, jax.random.key(0), a) for n, a in ((encoder, x), (decoder, z))]
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape), variables)
        return encoder.apply(zeros[0], x), decoder.apply(zeros[1], z)

    counted = jax.jit(forward).lower(x, z).cost_analysis()["flops"]
    # XLA leaves out the zeros around an image, and counts biases and activations.
    np.testing.assert_allclose(case.flops() / 3, counted, rtol=0.05)
    assert round(CASES["headline"].flops() / 1e9, 1) == 41.5


@pytest.mark.slow
def test_the_training_step_is_timed_in_its_smallest_form(monkeypatch, capsys, tmp_path):
    status = called(train_step, monkeypatch, "--cases=tiny", "--rounds=1", f"--out={tmp_path / 'r.json'}")
    result = last_line(capsys)
    assert status == 0
    assert result == json.loads((tmp_path / "r.json").read_text())
    assert result["failed"] == []
    assert 0 < result["largest_relative_difference"] < 1e-5
    assert result["traces_of_our_step"] == 1
    assert result["cases"]["tiny"]["speedup"] == result["speedup"] > 0
    for key in ("ours", "plain"):
        low, high = result["range"][key]
        assert 0 < low <= result["milliseconds"][key] <= high
        assert result["peak_mb"][key] > 50
    np.testing.assert_allclose(result["images_per_second"], 2000 / result["ours_ms"], rtol=0.2)


def test_the_nearest_code_is_timed_in_its_smallest_form(monkeypatch, capsys):
    called(nearest, monkeypatch, "--rounds=1", "--codes=8192", "--positions", "64", "128")
    result = last_line(capsys)
    for case in ("nearest", "sums"):
        figures = result[case]
        fastest = min(value for key, value in figures.items() if key.startswith("full_") and key.endswith("_ms"))
        np.testing.assert_allclose(figures["full_over_ours"], fastest / figures["ours_ms"])
    # Scores of 128 positions and 512 codes at a time, 8,192 codes twice, and the vectors.
    assert 4 <= result["nearest"]["many_memory_mb"] <= 6


def test_steps_of_quantizers_are_timed_in_their_smallest_form(monkeypatch, capsys):
    config_of = quantizer_steps.config_of
    small = {"model.hidden": "8", "model.residual_units": "8", "data.batch_size": "2"}
    monkeypatch.setattr(quantizer_steps, "config_of", lambda *given: config_of(*given[:-1], small))
    called(quantizer_steps, monkeypatch, "--rounds=1", "--rows", "finite_scalar_9", "vector_ema_12")
    first, second = last_line(capsys)["rows"]
    assert (first["name"], second["name"], first["over_first"]) == ("finite_scalar_9", "vector_ema_12", 1)
    np.testing.assert_allclose(second["over_first"], second["ms"] / first["ms"])
    assert 0 < first["planned_mb"] <= second["planned_mb"]


def test_the_full_matrix_finds_what_ours_does():
    random = np.random.default_rng(0)
    z_e, codes = random.normal(size=(50, 1, 4)).astype(np.float32), random.normal(size=(1, 9, 4)).astype(np.float32)
    found = nearest.nearest_code(z_e, codes)
    np.testing.assert_array_equal(nearest.full_argmin(z_e, codes), found)
    np.testing.assert_array_equal(nearest.full_minima(z_e, codes), found)
    np.testing.assert_allclose(nearest.full_sums(z_e, found, 9), nearest.sum_by_code(z_e, found, 9), rtol=1e-5)


def test_a_wrong_gradient_fails(monkeypatch, capsys):
    decoder = Trunk.decoder
    monkeypatch.setattr(Trunk, "decoder", lambda self: WrongGradient(decoder(self)))
    measured = {"compile_seconds": 1.0, "planned_mb": 1, "peak_mb": 1, "traces": 1}
    monkeypatch.setattr(train_step, "measure", lambda *_: ({"ours": measured}, {"ours": [1.0]}, [1.0]))
    monkeypatch.setattr(train_step, "batches_per_second", lambda: 1.0)
    assert called(train_step, monkeypatch, "--cases=tiny") == 1
    (message,) = last_line(capsys)["failed"]
    assert message.startswith("tiny: gradients differ by ")


GOOD = {"largest_relative_difference": 1e-6, "traces_of_our_step": 1, "speedup": 4.0, "over_pytorch": 1.3}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("largest_relative_difference", 1e-5, "gradients differ by 1.0e-05 of the largest"),
        ("largest_relative_difference", float("nan"), "gradients differ by nan of the largest"),
        ("traces_of_our_step", 2, "the step was traced 2 times"),
        ("speedup", 1.9, "1.9 times as fast as plain layers, not 2.0"),
        ("over_pytorch", 1.1, "1.1 times as fast as PyTorch, not 1.2"),
        ("losses_of_pytorch_differ_by", 1e-3, "PyTorch's losses differ by 1.0e-03"),
    ],
)
def test_a_goal_that_is_missed_is_named(key, value, message):
    assert train_step.failures(CASES["headline"], GOOD) == []
    assert train_step.failures(CASES["headline"], GOOD | {key: value}) == [message]


def test_the_best_of_pytorch_counts():
    about = {"ours": {"compile_seconds": 1.0, "planned_mb": 1, "peak_mb": 1, "traces": 1, "losses": [2.0, 1.0]}}
    times = {"ours": [0.1, 0.2, 0.4]}
    for n, layout in enumerate(("channels_last", "contiguous", "contiguous_huge_pages")):
        about[f"pytorch_{layout}"] = {"losses": [2.0, 1.0 + n / 1e4], "peak_mb": n, "torch": "2"}
        times[f"pytorch_{layout}"] = [0.5 - n / 10] * 3
    times["pytorch_bfloat16_contiguous"], about["pytorch_bfloat16_contiguous"] = [0.01], about["pytorch_contiguous"]
    result = train_step.summary(CASES["tiny"], about, times, [1.0])
    assert result["pytorch_best"] == "pytorch_contiguous_huge_pages"
    assert (result["pytorch_ms"], result["over_pytorch"], result["pytorch_peak_mb"]) == (300, 1.5, 2)
    assert result["pytorch_bfloat16_ms"] == 10
    np.testing.assert_allclose(result["losses_of_pytorch_differ_by"], 2e-4)


@pytest.mark.slow
def test_a_device_is_measured_in_its_smallest_form(monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "keep_compiled", lambda: None)
    assert called(accelerator, monkeypatch, "--quick") == 0
    result = last_line(capsys)
    assert result["left_out"] == []
    kinds = Counter(name.partition(",")[0] for name in result["rows"])
    assert kinds == {"product": 3, "step": 6, "evaluation": 2, "drawing codes": 1}
    for name, row in result["rows"].items():
        if not name.endswith("bf16"):
            assert row["ms"] > 0, name
    assert 0 < result["rows"]["step, 8 pixels, float32"]["share"] < 1


def test_a_row_that_fails_is_a_line_and_one_without_time_is_named(monkeypatch):
    clock = iter([0.0, 3.0, 7.0, 9.0])
    monkeypatch.setattr(accelerator.time, "perf_counter", lambda: next(clock))

    def fails():
        raise MemoryError("out of memory\nin many words")

    rows = {"product, float32": lambda: {"GFLOP/s": 10.0}, "step, float32": fails, "last": fails, "never": fails}
    found, left_out = accelerator.measure(rows, seconds=10)
    assert left_out == ["last", "never"]  # seven seconds are gone, and the longest row took four
    assert found["step, float32"] == {"note": "MemoryError: out of memory"}
    accelerator.add_shares(found | {"step, 8 pixels, float32": (row := {"GFLOP/s": 5.0})})
    assert row["share"] == 0.5
    lines = accelerator.table(found).splitlines()
    assert len(lines) == 3
    assert lines[2].endswith("MemoryError: out of memory")
