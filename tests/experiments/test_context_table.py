"""The experiment on codes and neighbours: its rows are configs that build, and a result is what evaluation found."""

import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import context
from vqvae_jax import registry
from vqvae_jax.errors import InputError

SHAPES = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1), "imagenet_128": (128, 128, 3), "study": (32, 32, 3)}
SMALL = ["data.name=photos", "model.context.units=8", "model.hidden=8", "model.residual_units=8", "train.num_steps=4"]
SMALL += ["train.log_every=1", "train.eval_every=2", "optimizer.warmup_steps=1", "eval.test_images=8"]
SMALL += ["eval.validation_images=8", "eval.fit_images=8", "eval.final_fit_images=32", "eval.samples=0"]
SMALL += ["prior.features=8", "prior.layers=2", "prior.num_steps=4", "prior.log_every=2", "prior.eval_every=2"]
SMALL += ["prior.optimizer.warmup_steps=1"]


@pytest.mark.parametrize(("table", "name"), [(table, name) for table, rows in context.ROWS.items() for name in rows])
def test_every_row_builds_with_the_latents_and_neighbours_that_it_names(table, name):
    model = registry.build_model(context.config_of(table, name, None, {})["model"], SHAPES[table])
    reach, _, latents = name.rpartition(", ")
    if latents == "none":
        assert set(model.codebook_sizes) == {1}
    else:
        expected = tuple(int(n) for n in latents.split("x"))
        assert (*model.trunk.grid(*SHAPES[table][:2]), len(model.codebook_sizes)) == expected
        assert min(model.codebook_sizes) >= 128
    seen = getattr(model.likelihood, "reach", 0)
    assert seen == (int(reach.removeprefix("reach ")) if reach else 3)


def called(monkeypatch, folder, photo_dir, *words):
    line = ["context", *words[:1], f"--data_dir={photo_dir}", f"--runs={folder}/runs", f"--out={folder}/out"]
    monkeypatch.setattr(sys, "argv", [*line, "--rows", *words[1:], "--set", *SMALL])
    context.main()


@pytest.mark.slow
def test_a_result_is_what_evaluation_found_and_stands_beside_that_without_codes(
    tmp_path, photo_dir, monkeypatch, capsys
):
    called(monkeypatch, tmp_path, photo_dir, "cifar10", "none", "4x4x1")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {
        name: json.loads((tmp_path / "runs" / f"cifar10_{name}" / "evaluation.json").read_text())
        for name in ("none", "4x4x1")
    }
    assert last["bits_per_dim"] == {name: evaluation["bits_per_dim"] for name, evaluation in found.items()}
    headline = json.loads((tmp_path / "out" / "headline.json").read_text())["cifar10"]
    for key in ("bits_per_dim", "rate", "distortion"):
        assert headline[key] == found["4x4x1"][key]
        assert headline["without_codes"][key] == found["none"][key]
    assert found["none"]["rate"] == 0
    np.testing.assert_allclose(headline["rate"] + headline["distortion"], headline["bits_per_dim"])
    result = json.loads((tmp_path / "out" / "cifar10_4x4x1.json").read_text())
    assert result["bits_per_dim_pixelwise"] == found["4x4x1"]["bits_per_dim_pixelwise"]
    assert {row["prior"] for row in result["priors"]} >= {"uniform", "unigram", "pixelcnn"}
    assert [point["step"] for point in result["curve"]] == [2, 4]
    assert result["minutes"] >= 0
    assert str(photo_dir) not in json.dumps(result)
    assert Image.open(tmp_path / "out" / "cifar10.png").size[0] > 500
    monkeypatch.setattr(context.commands, "train", None)
    called(monkeypatch, tmp_path, photo_dir, "cifar10", "none")


@pytest.mark.slow
def test_the_study_reads_validation_images_alone(tmp_path, photo_dir, monkeypatch):
    opened, build = set(), registry.build_source
    monkeypatch.setattr(registry, "build_source", lambda data, split: (opened.add(split), build(data, split))[1])
    called(monkeypatch, tmp_path, photo_dir, "study", "reach 1, none")
    assert opened == {"train", "validation"}
    result = json.loads((tmp_path / "out" / "study_reach_1_none.json").read_text())
    assert result["priors"][0]["split"] == "validation"
    assert "study" not in json.loads((tmp_path / "out" / "headline.json").read_text())


def test_an_unknown_row_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown row of cifar10 '4x4': did you mean '4x4x1'"):
        context.config_of("cifar10", "4x4", None, {})


def test_one_code_says_nothing(config):
    """A codebook of one code is the model without latents: whatever the image, it is the same features and no bits."""
    config["model"]["quantizer"] |= {"codebook_size": 1, "num_codebooks": 1}
    model = registry.build_model(config["model"], (8, 12, 3))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    variables = {**model.init(jax.random.key(0), images), "fitted": {}}
    bound = model.bound(variables, images)
    np.testing.assert_array_equal(bound.rate, 0)
    codes = model.encode(variables, images)
    np.testing.assert_array_equal(codes, 0)
    features = np.asarray(model.features(variables, codes))
    np.testing.assert_array_equal(features, features[:1].repeat(3, axis=0))
