"""What the table says of a figure: of which images it is, and whether it bounds the likelihood or does so on average."""

import pytest

from vqvae_jax.evaluation.tables import print_table

RESULT = {
    "bits_per_dim": 3.5,
    "rate": 0.5,
    "distortion": 3.0,
    "mse": 10.0,
    "psnr": 38.0,
    "ssim": None,
    "family": "vqvae",
    "prior": "unigram",
    "samples": 1,
    "in_expectation": False,
    "priors": {"unigram": {"bits_per_dim": 3.5, "rate": 0.5}, "uniform": {"bits_per_dim": 3.75, "rate": 0.75}},
    "num_images": 4,
    "num_images_in_split": 10,
    "dataset": "tiny",
    "split": "test",
    "likelihood": "logistic",
    "step": 7,
    "standard_errors": {"bits_per_dim": 0.25, "rate": 0.125, "distortion": None, "mse": 1.0, "psnr": 2.0},
    "per_class": {"cat": {"num_images": 4, "bits_per_dim": 3.5, "rate": 0.5, "distortion": 3.0, "psnr": 38.0}},
}


@pytest.fixture
def printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def printed(**changes):
        print_table(RESULT | changes)
        return " ".join(capsys.readouterr().out.split())

    return printed


def test_a_table_has_every_figure(printed):
    out = printed()
    assert "tiny, test split, 4 of 10 images, step 7" in out
    assert "bits/dim (unigram prior) = rate + distortion │ 3.500 │ 0.250 │" in out
    assert "│ distortion │ 3.000 │ – │" in out
    assert "bits/dim (uniform prior) │ 3.750 │" in out
    assert "│ cat │ 4 │ 3.500 │ 0.500 │ 3.000 │ 38.000 │" in out
    assert "10 images" in printed(num_images=10)
    assert "of 10" not in printed(num_images=10)


def test_a_proven_bound_is_none_in_expectation(printed):
    other = [{"codes": 1, "num_images": 4, "bits_per_dim": 3.5, "standard_error": 0.5}]
    other += [{"codes": 8, "num_images": 4, "bits_per_dim": 3.25, "standard_error": 0.5}]
    out = printed(other_bounds=other)
    assert "in expectation" not in out
    assert "bits/dim, 8 codes, first 4 images: 3.250 ± 0.500" in out
    assert "what the codes that were not chosen are worth: at least 0.25000 bits/dim" in out


def test_a_bound_of_draws_is_one_in_expectation(printed):
    other = [{"draws": 16, "num_images": 4, "bits_per_dim": 3.25, "standard_error": 0.5}]
    out = printed(in_expectation=True, prior="normal", other_bounds=other)
    assert "bits/dim (normal prior) = rate + distortion, in expectation │ 3.500" in out
    assert "bits/dim, 16 draws, in expectation, first 4 images: 3.250" in out
    out = printed(in_expectation=True, samples=50, elbo_bits_per_dim=4.5, priors={})
    assert "bound of 50 draws, in expectation) │ 3.500" in out
    assert "bits/dim (bound of 1 draw, in expectation) │ 4.500" in out


def test_what_is_no_bound_says_so(printed):
    out = printed(family="autoencoder", prior=None, priors={}, bits_per_dim=None, rate=None)
    assert "distortion, bits/dim (no bound: autoencoder, which has no p(z)) │ 3.000" in out
    assert "rate + distortion" not in out


def test_other_codecs_stand_beside_the_bound(printed):
    codecs = {"png": 5.5, "webp": 4.5}
    assert "bits/dim of PNG, a file an image │ 5.500" in printed(codecs=codecs)
    out = printed(codecs=codecs, num_images=5000, num_images_in_split=5000)
    assert "bits/dim of lossless WebP, a file an image, first 1,000 images │ 4.500" in out
