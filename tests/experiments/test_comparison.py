"""The experiments behind the comparison: anchors against SciPy, and the whole command in small."""

import argparse
import io
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from experiments import anchors, collect, compare_priors, files, rate_distortion
from vqvae_jax import registry
from vqvae_jax.codec import compress
from vqvae_jax.evaluation import evaluate
from vqvae_jax.run import load
from vqvae_jax.training import loop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arrays():
    coarse = np.random.default_rng(0).integers(0, 256, (70, 2, 2, 1))
    noise = np.random.default_rng(1).integers(-20, 20, (70, 3, 4, 1))
    images = np.clip(np.repeat(np.repeat(coarse, 2, 1), 2, 2)[:, :3] + noise, 0, 255).astype(np.uint8)
    return images[:50], images[50:]


def test_histogram_is_one_table_for_every_position(arrays):
    train, test = arrays
    bits = []
    for image in test:
        for place in np.ndindex(image.shape):
            same = np.sum(train[(slice(None), *place)] == image[place])
            bits.append(-math.log2((same + 1) / (len(train) + 256)))
    np.testing.assert_allclose(anchors.histogram_bits(train, test), np.mean(bits), rtol=1e-10)


def test_gaussian_is_scipys_at_the_same_noisy_pixels(arrays, monkeypatch):
    monkeypatch.setattr(anchors, "AT_ONCE", 7)
    noise = np.random.default_rng(0)
    train, test = (np.concatenate([_noisy(part[n : n + 7], noise) for n in range(0, len(part), 7)]) for part in arrays)
    covariance = np.cov(train.T, bias=True)
    nats = -stats.multivariate_normal(train.mean(0), covariance).logpdf(test).mean()
    # The same draws: the noise of the training images comes first, and SciPy is given nothing else.
    np.testing.assert_allclose(anchors.gaussian_bits(*arrays), nats / 12 / math.log(2), rtol=1e-6)


def _noisy(images, random):
    flat = images.reshape(len(images), -1).astype(float)
    return flat + random.random(flat.shape)


def test_files_are_counted_to_the_byte_and_are_lossless(arrays):
    _, test = arrays
    size = 0
    for image in test:
        out = io.BytesIO()
        Image.fromarray(image[..., 0]).save(out, "WEBP", lossless=True, quality=100, method=6)
        np.testing.assert_array_equal(np.asarray(Image.open(out).convert("L")), image[..., 0])
        size += len(out.getvalue())
    got = evaluate.file_bits(test, "WEBP", **evaluate.CODECS["webp"])
    np.testing.assert_allclose(got, 8 * size / test.size)


def test_training_time_leaves_out_what_is_not_training():
    record = [{"step": 10, "images_per_second": 32.0}, {"step": 10, "eval/distortion": 1.0}]
    record += [{"step": 30, "images_per_second": 64.0}]
    points = collect.training_minutes(record, 32)
    np.testing.assert_allclose(points, [(10, 10 / 60), (30, 20 / 60)])


def test_jpeg_is_counted_with_its_header_and_without(arrays):
    images = np.repeat(arrays[1], 3, axis=-1)
    row = rate_distortion.other_codec(images, "JPEG")[-1]
    sizes, scans, errors, escaped = [], [], [], re.compile(rb"\xff[^\x00]")
    for image in images:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=int(row["setting"]), optimize=True)
        sizes.append(len(out.getvalue()))
        errors.append(np.mean((np.asarray(Image.open(out), float) - image) ** 2))
        plain = io.BytesIO()
        Image.fromarray(image).save(plain, "JPEG", quality=int(row["setting"]))
        after = plain.getvalue().split(b"\xff\xda")[1][12:]  # of three components the segment has 12 bytes
        scans.append(escaped.search(after).start())  # ended by the first marker
    pixels = images.size / 3
    np.testing.assert_allclose(row["bits_per_pixel"], 8 * sum(sizes) / pixels)
    np.testing.assert_allclose(row["bits_per_pixel_of_scans"], 8 * sum(scans) / pixels)
    np.testing.assert_allclose(row["psnr"], np.mean(10 * np.log10(255**2 / np.array(errors))), rtol=1e-5)


@pytest.fixture(scope="module")
def tiny_run(of_both_stages, tmp_path_factory):
    """A folder with a tiny run of both stages."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    loop.train(of_both_stages, folder)
    return folder


def called(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


@pytest.mark.slow
def test_priors_are_compared_on_the_same_images_and_the_runs_own_is_not_trained_again(
    tiny_run, photo_dir, tmp_path, monkeypatch
):
    own = (tiny_run / "prior" / "metrics.jsonl").read_text()
    options = [f"--run={tiny_run}", f"--data_dir={photo_dir}", f"--out={tmp_path}", "--images=16"]
    called(compare_priors, monkeypatch, *options, "--priors", "pixelcnn", "conditional")
    assert (tiny_run / "prior" / "metrics.jsonl").read_text() == own
    found = json.loads((tmp_path / "table.json").read_text())["priors"]
    run = load(tiny_run, photo_dir)
    images = rate_distortion.first_images(registry.build_source(run.meta["config"]["data"], "test"), 16)
    np.testing.assert_allclose(found["pixelcnn"]["bits_per_dim"], run.bits_per_dim(images).mean(), rtol=1e-6)
    assert not tiny_run.with_name("run_pixelcnn").exists()
    other = load(tiny_run.with_name("run_conditional"), photo_dir)
    codes, classes = other.encode(images), len(other.meta["class_names"])
    of_class = np.stack([other.learned.log_prob(codes, np.full(len(codes), n)) for n in range(classes)])
    nats = -np.logaddexp.reduce(
        of_class + np.asarray(other.learned.variables["fitted"]["log_class_frequencies"])[:, None]
    )
    conditional = found["conditional"]
    np.testing.assert_allclose(conditional["rate"], nats.mean() / math.log(2) / images[0].size, rtol=1e-5)
    assert conditional["counted"]["unigram"] == found["pixelcnn"]["counted"]["unigram"]
    table = (tmp_path / "table.md").read_text()
    assert f"{found['pixelcnn']['rate']:.4f}" in table
    assert "given the class (no bound of p(x))" in table
    assert Image.open(tmp_path / "samples_conditional.png").size[0] > 100


def test_settings_of_priors_are_for_one_or_for_all():
    assert compare_priors.setting("num_steps=5") == (("", "num_steps"), 5)
    assert compare_priors.setting("transformer.name=pixelcnn") == (("transformer", "name"), "pixelcnn")
    for wrong in ("num_steps", "tranformer.num_steps=5", "prior.num_steps=5"):
        with pytest.raises(argparse.ArgumentTypeError, match="is neither KEY=VALUE nor PRIOR"):
            compare_priors.setting(wrong)


def test_other_codecs_are_compared_at_the_nearest_rate_and_at_equal_psnr():
    rows = [
        {"setting": n, "bits_per_pixel": r, "psnr": q, "ssim": 0.5} for n, r, q in ((1, 1, 20), (2, 2, 30), (3, 4, 34))
    ]
    found = rate_distortion.matched({"WEBP": rows}, {"bits_per_pixel": 1.9, "psnr": 32})["WebP"]
    assert found == {"setting": 2, "bits_per_pixel": 2, "psnr": 30, "ssim": 0.5, "bits_per_pixel_at_equal_psnr": 3}
    found = rate_distortion.matched({"WEBP": rows}, {"bits_per_pixel": 0.1, "psnr": 19})["WebP"]
    assert found["setting"] == 1
    assert found["bits_per_pixel_at_equal_psnr"] is None


@pytest.mark.slow
def test_rate_and_distortion_of_a_run_are_those_of_its_files(tiny_run, photo_dir, tmp_path, monkeypatch):
    images = [f"--images={8}", f"--data_dir={photo_dir}", f"--out={tmp_path}"]
    called(rate_distortion, monkeypatch, "--runs", f"tiny={tiny_run}", *images)
    result = json.loads((tmp_path / "result.json").read_text())
    lossless, lossy = result["lossless"]["tiny"], result["lossy"]["tiny"]
    run = load(tiny_run, photo_dir)
    test = rate_distortion.first_images(registry.build_source(run.meta["config"]["data"], "test"), 8)
    assert lossless["images_decoded_exactly"] == result["num_images"] == 8
    np.testing.assert_allclose(lossless["reported_bits_per_dim"], run.bits_per_dim(test).mean(), rtol=1e-5)
    # The coder gives every level at least 2^-24; of a model that hardly learned, some have less.
    codes, params = run.encode(test), run.model.likelihood_params(run.variables)
    log_prob = run.model.likelihood.log_prob(params, run.model.features(run.variables, codes), test)
    pixels = np.minimum(-np.asarray(log_prob, np.float64) / math.log(2), 24).sum() / 8
    expected = pixels + run.measure(test)["rate/pixelcnn"].sum() / math.log(2) / 8
    assert abs(lossless["stream_bytes"] - expected) < 0.005 * expected + 64
    assert lossless["stream_bytes"] < 1.005 * lossless["reported_bytes"] + 64
    np.testing.assert_allclose(lossy["bits_per_pixel_uniform"], 64 * 2 * math.log2(5) / 1024)
    rate = run.measure(test)["rate/pixelcnn"].sum() / math.log(2)
    assert abs(lossy["bits_per_pixel"] * 8 * 1024 - rate) < 0.005 * rate + 8 * 8
    assert {path.name for path in tmp_path.iterdir()} >= {"table.md", "curves.svg", "curves.png", "pictures.png"}


@pytest.mark.slow
def test_files_of_any_size_are_compared_with_other_codecs_by_all_their_bytes(tiny_run, tmp_path, monkeypatch, capsys):
    random, size, shapes = np.random.default_rng(0), 0, [(33, 45), (32, 32), (7, 60)]
    for n, shape in enumerate(shapes):
        image = Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8))
        image.save(tmp_path / f"{n}.png")
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        size += len(buffer.getvalue()) if n < 2 else 0
    about = ["--data=noise", "--trained_on=photographs", f"--out={tmp_path / 'r.json'}", "--num=2"]
    called(files, monkeypatch, f"--run={tiny_run}", f"--input={tmp_path}", *about)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "r.json").read_text())
    assert result["images_decoded_exactly"] == 2
    assert result["sub_pixels"] == 3 * (33 * 45 + 32 * 32)
    np.testing.assert_allclose(result["other_codecs"]["PNG"], 8 * size / result["sub_pixels"])
    data, _ = compress.compress(load(tiny_run), [str(tmp_path / "0.png"), str(tmp_path / "1.png")])
    np.testing.assert_allclose(result["bits_per_dim"], 8 * len(data) / result["sub_pixels"])
