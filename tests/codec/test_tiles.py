"""Codes and pixels to bits: as many as their probabilities say, and back, also for likelihoods of several steps."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from untrained import SHAPE, Earlier, assert_same, make_run, pictures, read, save, tiles_of

from vqvae_jax.codec import compress
from vqvae_jax.codec.entropy import Decoder, Encoder
from vqvae_jax.codec.tiles import TileCoder
from vqvae_jax.errors import InputError
from vqvae_jax.likelihoods.context import Context


@pytest.fixture
def photographs(tmp_path) -> dict[str, np.ndarray]:
    """Two images that end within tiles, in tmp_path/in."""
    random = np.random.default_rng(7)
    found = {f"{n}.png": random.integers(60, 200, (33, 45, 3), dtype=np.uint8) for n in range(2)}
    for name, image in found.items():
        save(image, tmp_path / "in" / name)
    return found


@pytest.mark.parametrize(("prior", "model"), [("none", Earlier()), ("pixelcnn", Earlier()), ("none", Context(units=8))])
def test_a_likelihood_of_several_steps_costs_what_it_says_and_comes_back(config, tmp_path, photographs, prior, model):
    run = make_run(config, prior, pixel_model=model)
    data, sizes = compress.compress(run, [str(tmp_path / "in")])
    compress.decompress(run, data, tmp_path / "out")
    assert_same(read(tmp_path / "out"), photographs)
    nats = 0.0
    prior, variables = run.code_prior()
    for image in photographs.values():
        codes = run.encode(tiles_of(image, "edge"))
        features = run.model.features(run.variables, codes)
        log_prob = run.model.likelihood.log_prob(
            run.model.likelihood_params(run.variables), features, tiles_of(image, "constant")
        )
        real = tiles_of(np.ones_like(image), "constant")
        nats -= np.sum(np.asarray(log_prob, np.float64) * real)
        nats -= np.sum(np.asarray(prior.log_prob(variables, codes), np.float64))
    assert sizes.stream == pytest.approx(nats / math.log(2) / 8, rel=2e-4, abs=8)


def test_a_codebook_of_one_code_costs_nothing(config, tmp_path, photographs):
    config["model"]["quantizer"] |= {"codebook_size": 1, "num_codebooks": 1}
    run = make_run(config, pixel_model=Context(units=8))
    _, sizes = compress.compress(run, [str(tmp_path / "in")], lossy=True)
    assert sizes.stream == 0
    data, _ = compress.compress(run, [str(tmp_path / "in")])
    compress.decompress(run, data, tmp_path / "out")
    assert_same(read(tmp_path / "out"), photographs)


@pytest.mark.slow
def test_what_one_process_wrote_another_reads(config, tmp_path, photographs):
    """With the optimisations that users have, and a likelihood that looks at earlier pixels."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    program, root = Path(__file__).with_name("untrained.py"), Path(__file__).parent.parent.parent
    env = {**os.environ, "PYTHONPATH": str(root)}
    env.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    for direction, given, output in (("compress", "in", "x.vqz"), ("decompress", "x.vqz", "out")):
        paths = [str(tmp_path / name) for name in ("config.json", given, output)]
        subprocess.run([sys.executable, str(program), direction, *paths], env=env, check=True)
    assert_same(read(tmp_path / "out"), photographs)


@pytest.mark.parametrize("prior", ["none", "pixelcnn"])
def test_the_stream_is_as_long_as_evaluation_says(config, tmp_path, prior):
    run = make_run(config, prior)
    images = np.random.default_rng(5).integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    for n, image in enumerate(images):
        save(image, tmp_path / f"{n:02d}.png")
    _, sizes = compress.compress(run, [str(tmp_path)])
    reported = float(np.sum(run.bits_per_dim(images), dtype=np.float64)) * images[0].size / 8
    assert abs(sizes.stream - reported) < 0.001 * reported + 8
    assert sizes.total - sizes.names - sizes.stream < 300 + 4 * len(images)
    # The codes alone, which in the whole stream weigh little.
    _, sizes = compress.compress(run, [str(tmp_path)], lossy=True)
    rate = float(np.sum(run.measure(images)[f"rate/{run.prior}"], dtype=np.float64)) / math.log(2) / 8
    assert abs(sizes.stream - rate) < 0.005 * rate + 8
    assert abs(rate / (len(images) * np.prod(run.field) * math.log2(5) / 8) - 1) > 0.05  # not the uniform prior's


def test_a_lossy_file_has_the_codes_alone_and_gives_reconstructions(config, tmp_path):
    run = make_run(config, "pixelcnn")
    expected = pictures(tmp_path / "in")
    data, sizes = compress.compress(run, [str(tmp_path / "in")], lossy=True)
    compress.decompress(run, data, tmp_path / "out")
    found = read(tmp_path / "out")
    for name in ("noise.png", "sub/more noise.png"):
        np.testing.assert_array_equal(found[name], run.reconstruct(expected[name][None])[0])
    assert {name: image.shape for name, image in found.items()} == {n: i.shape for n, i in expected.items()}
    codes = run.encode(np.concatenate([tiles_of(image, "edge") for image in expected.values()]))
    nats = -np.sum(run.trained_prior().log_prob(codes), dtype=np.float64)
    assert sizes.stream == pytest.approx(nats / math.log(2) / 8, rel=2e-3, abs=8)


def test_a_label_is_fixed_or_searched_and_costs_its_frequency(config, tmp_path):
    frequencies = np.array([0.98, 0.02])
    run = make_run(config, "conditional", frequencies=frequencies)
    expected = pictures(tmp_path / "in")
    given = [str(tmp_path / "in")]
    made = {label: compress.compress(run, given, label=label, lossy=True)[0] for label in (0, 1)}
    assert made[0] != made[1]
    searched, sizes = compress.compress(run, given, search_label=True, lossy=True)
    for number, data in enumerate((made[0], made[1], searched)):
        compress.decompress(run, data, tmp_path / f"out{number}")
        assert read(tmp_path / f"out{number}").keys() == expected.keys()
    codes = [run.encode(tiles_of(image, "edge")) for image in expected.values()]
    log_prob = run.trained_prior().log_prob
    costs = np.array([[-log_prob(c, np.full(len(c), y)).sum() for y in (0, 1)] for c in codes])
    labels = np.argmin(costs - np.log(frequencies), axis=1)
    assert set(labels) == {0, 1}  # so that both are stored,
    assert not np.array_equal(labels, np.argmin(costs, axis=1))  # and a class's own cost matters
    assert sizes.labels == pytest.approx(-np.log2(frequencies[labels]).sum() / 8)
    nats = costs[np.arange(len(labels)), labels].sum()
    assert sizes.stream == pytest.approx(nats / math.log(2) / 8, rel=2e-3, abs=8)
    with pytest.raises(InputError, match="this run's prior knows classes: name one with --class"):
        compress.compress(run, given)
    with pytest.raises(InputError, match="leave out one"):
        compress.compress(run, given, label=1, search_label=True)
    with pytest.raises(InputError, match="knows no classes"):
        compress.compress(make_run(config), given, label=1)


def test_labels_cost_their_frequencies_and_come_back(config):
    frequencies = np.array([0.9, 0.1])
    coder = TileCoder(make_run(config, "conditional", frequencies=frequencies))
    labels = np.random.default_rng(0).choice(2, 2000, p=frequencies).tolist()
    encoder = Encoder()
    assert coder.code_labels(labels, encoder) == labels
    data = encoder.finish()
    assert 8 * len(data) == pytest.approx(-np.log2(frequencies[labels]).sum(), rel=1e-3, abs=64)
    assert coder.code_labels([0] * 2000, Decoder(data)) == labels


@pytest.mark.parametrize("data", [b"", bytes(40), b"\xff" * 40])
def test_a_stream_gives_no_more_than_it_can_hold(data):
    decoder = Decoder(data)
    with pytest.raises(InputError, match="this file is damaged: its stream"):
        decoder.code(np.full((2000, 256), 1 / 256, np.float32))


@pytest.mark.parametrize("bits", [8, 21, 22, 23, 24, 30])
def test_a_stream_of_improbable_symbols_comes_back(bits):
    """What a symbol costs is known to less than the slack, also where frequencies are rounded up from almost nothing."""
    probabilities = np.full((20_000, 2), [1 - 2.0**-bits, 2.0**-bits], np.float32)
    encoder = Encoder()
    encoder.code(probabilities, np.ones(20_000, np.int32))
    assert Decoder(encoder.finish()).code(probabilities).all()


def test_symbols_come_back_and_cost_what_their_probabilities_say():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(256, 0.1), 4000).astype(np.float32)
    symbols = np.array([random.choice(256, p=p / p.sum()) for p in probabilities.astype(np.float64)])
    encoder = Encoder()
    for part in (np.s_[:1000], np.s_[:0], np.s_[1000:]):
        np.testing.assert_array_equal(encoder.code(probabilities[part], symbols[part]), symbols[part])
    data = encoder.finish()
    decoder = Decoder(data)
    np.testing.assert_array_equal(decoder.code(probabilities[:3]), symbols[:3])
    np.testing.assert_array_equal(decoder.code(probabilities[3:]), symbols[3:])
    chosen = np.maximum(probabilities[np.arange(4000), symbols], 2.0**-24)
    assert 8 * len(data) == pytest.approx(-np.log2(chosen).sum(), rel=2e-3, abs=64)
