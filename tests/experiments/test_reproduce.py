"""The reproduction: its rows are the configs that they name, and what it writes is what evaluation found."""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import cifar10
from experiments import reproduce
from vqvae_jax import registry
from vqvae_jax.errors import InputError
from vqvae_jax.run import Run
from vqvae_jax.training.record import read_record

SMALL = ["data.name=photos", "model.hidden=8", "model.residual_units=8", "train.num_steps=12", "train.log_every=2"]
SMALL += ["optimizer.warmup_steps=2", "eval.test_images=16", "eval.validation_images=8", "eval.final_fit_images=32"]
SMALL += ["eval.fit_images=8", "eval.samples=4", "eval.subset_images=4", "eval.subset_samples=6", "prior.features=8"]
SMALL += ["prior.layers=2", "prior.num_steps=4", "prior.log_every=2", "prior.eval_every=2"]
SMALL += ["prior.optimizer.warmup_steps=1"]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, photo_dir):
    """Reproduce rows of a table in small; a function of the table and of its rows that gives its folders."""
    folder = tmp_path_factory.mktemp("reproduction")

    def run(table, *rows):
        line = ["reproduce", table, f"--data_dir={photo_dir}", f"--runs={folder}/runs", f"--out={folder}/out"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*line, "--rows", *rows, "--set", *SMALL])
            reproduce.main()
        return folder / "runs" / table, folder / "out"

    return run


@pytest.mark.parametrize("table", reproduce.ROWS)
def test_every_row_is_a_config_that_builds(table):
    for name in reproduce.ROWS[table]:
        config = reproduce.config_of(table, name, None, {})
        model = registry.build_model(config["model"], (32, 32, 3))
        assert type(model).__name__.lower() == reproduce.ROWS[table][name][0].removesuffix("_gradient")
        assert config["train"]["num_steps"] // config["train"]["eval_every"] == reproduce.VALIDATIONS


def test_the_small_config_is_the_row_of_the_vqvae():
    rows, page = reproduce.config_of("cifar10", "vqvae", None, {}), cifar10.get_config("small").to_dict()
    for config in (rows, page):
        del config["train"]["eval_every"], config["train"]["checkpoint_every"]
    assert rows == page


def test_a_row_changes_what_it_names_and_an_unknown_option_is_an_error(monkeypatch):
    config = reproduce.config_of("cifar10", "vqvae_gradient", "here", {"model.hidden": 7})
    assert config["model"]["quantizer"]["name"] == "vector_gradient"
    assert config["model"]["hidden"] == 7
    assert config["data"]["data_dir"] == "here"
    monkeypatch.setitem(reproduce.ROWS["study"], "wrong", ("vqvae", {"model.hiden": 3}))
    with pytest.raises(InputError, match="unknown option model.hiden: did you mean 'model.hidden'"):
        reproduce.config_of("study", "wrong", None, {})
    assert reproduce.setting("a.b=0.5") == ("a.b", "0.5")
    with pytest.raises(argparse.ArgumentTypeError, match="'a.b' is not KEY=VALUE"):
        reproduce.setting("a.b")


def test_a_vqvae_that_draws_its_codes_has_its_bound_when_it_is_cold(monkeypatch):
    monkeypatch.setattr(reproduce, "TEMPERATURE", 1e-3)
    small = {"model.hidden": 8, "model.residual_units": 8}
    model, drawing = (
        registry.build_model(reproduce.config_of("cifar10", name, None, small)["model"], (32, 32, 3))
        for name in ("vqvae", "vimco_from_vqvae")
    )
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    variables = model.init(jax.random.key(0), images) | {"fitted": {}}
    run = Run(model, variables, {"config": {}})
    converted = {"params": reproduce.as_categorical(run, images), "state": (), "fitted": {}}
    np.testing.assert_array_equal(drawing.encode(converted, images), model.encode(variables, images))
    bound = drawing.bound(converted, images, jax.random.split(jax.random.key(1), 8))
    expected = model.bound(variables, images)
    np.testing.assert_allclose(bound.distortion, expected.distortion, rtol=1e-4)
    np.testing.assert_allclose(bound.rate, expected.rate, rtol=1e-3)


@pytest.mark.slow
def test_a_row_starts_at_another_one(reproduced):
    runs, out = reproduced("cifar10", "vqvae", "vimco_from_vqvae")
    rows = json.loads((out / "cifar10.json").read_text())
    (row,) = (row for row in rows if row["name"] == "vimco_from_vqvae")
    (uniform,) = (row for row in rows if row["name"] == "vqvae" and row["prior"] == "uniform")
    assert row["bits_per_dim"] < uniform["bits_per_dim"] + 0.1
    assert (runs / "vimco_from_vqvae" / "checkpoints" / "model").is_dir()


@pytest.mark.slow
def test_rows_are_what_evaluation_found_one_for_every_prior(reproduced, photo_dir, capsys, monkeypatch):
    runs, out = reproduced("cifar10", "vqvae", "vae")
    rows = json.loads((out / "cifar10.json").read_text())
    found = json.loads((runs / "vqvae" / "evaluation.json").read_text())
    mine = {row["prior"]: row for row in rows if row["name"] == "vqvae"}
    assert mine.keys() == {"pixelcnn", "uniform", "unigram", "positionwise"}
    for prior, row in mine.items():
        for key in ("bits_per_dim", "rate", "standard_error"):
            assert row[key] == found["priors"][prior][key]
        assert row["images_seen"] == 12 * 32
        assert (row["family"], row["likelihood"], row["codebook_update"]) == ("vqvae", "logistic_mixture", "ema")
    (vae,) = (row for row in rows if row["name"] == "vae")
    assert (vae["prior"], vae["codebook_update"], vae["in_expectation"]) == ("normal", None, True)
    assert [bound["draws"] for bound in vae["other_bounds"]] == [4, 1, 4, 6]
    assert str(photo_dir) not in (out / "cifar10.json").read_text()
    curve = json.loads((out / "cifar10_curves.json").read_text())["vae"]
    record = [line["eval/bits_per_dim"] for line in read_record(runs / "vae") if "eval/bits_per_dim" in line]
    assert [point["bits_per_dim"] for point in curve] == record
    assert [point["images_seen"] for point in curve] == [32 * n for n in range(1, 13)]
    assert Image.open(out / "cifar10_curves.png").size[0] > 500
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["bits_per_dim"]["vae, normal"] == vae["bits_per_dim"]
    before = {path: path.stat().st_mtime_ns for path in Path(runs).rglob("*") if path.is_file() and path.name != "lock"}
    rows = [row | {"commit": "that trained"} for row in rows]
    (out / "cifar10.json").write_text(json.dumps(rows))
    reproduced("cifar10", "vae")
    assert json.loads((out / "cifar10.json").read_text()) == rows
    monkeypatch.setitem(reproduce.ROWS["cifar10"], "vae", ("vae", {"model.latent_channels": 3}))
    with pytest.raises(SystemExit):
        reproduced("cifar10", "vae")
    assert "holds a run of another config: model.latent_channels (20 there, 3 now)" in capsys.readouterr().err
    assert before == {
        path: path.stat().st_mtime_ns for path in Path(runs).rglob("*") if path.is_file() and path.name != "lock"
    }
    assert [row["name"] for row in json.loads((out / "cifar10.json").read_text())].count("vqvae") == 4


@pytest.mark.slow
def test_a_study_reads_validation_images_alone(reproduced, monkeypatch):
    opened, build = [], registry.build_source
    monkeypatch.setattr(
        registry, "build_source", lambda section, split: (opened.append(split), build(section, split))[1]
    )
    runs, out = reproduced("study", "no revival")
    assert set(opened) == {"train", "validation"}
    (row, *_) = json.loads((out / "study.json").read_text())
    assert row["split"] == "validation"
    assert row["config"]["model"]["quantizer"]["revival_threshold"] == 0.0
    assert (runs / "no_revival").is_dir()


def test_an_unknown_row_lists_the_known_ones(reproduced, capsys):
    with pytest.raises(SystemExit):
        reproduced("cifar10", "vqave")
    assert "unknown row of cifar10 'vqave': did you mean 'vqvae'" in capsys.readouterr().err
