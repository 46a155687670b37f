"""The comparison of quantizers: its rows are of the size they say, and a row is what evaluation found."""

import json
import math
import sys

import pytest
from PIL import Image

from experiments import compare_quantizers
from vqvae_jax import registry

SMALL = [
    "data.name=photos",
    "model.hidden=8",
    "model.residual_units=8",
    "train.log_every=2",
    "optimizer.warmup_steps=2",
]
SMALL += ["eval.test_images=16", "eval.validation_images=8", "eval.final_fit_images=32", "eval.fit_images=8"]
SMALL += ["eval.samples=0", "eval.subset_images=4", "eval.subset_samples=6", "prior.features=8", "prior.layers=2"]
SMALL += ["prior.log_every=2", "prior.optimizer.warmup_steps=1"]


@pytest.mark.parametrize("name", compare_quantizers.ROWS)
def test_every_row_is_a_config_that_builds_with_as_many_values_as_it_says(name):
    config = compare_quantizers.config_of(name, 1, 1300, 600, None, {"model.hidden": "8"})
    model = registry.build_model(config["model"], (32, 32, 3))
    assert math.prod(model.codebook_sizes) == 2 ** int(name.rpartition("_")[2])
    assert (config["seed"], config["model"]["hidden"], config["train"]["num_steps"]) == (1, 8, 1300)
    registry.build_prior(config["prior"], (8, 8, len(model.codebook_sizes)), model.codebook_sizes, 10)


@pytest.mark.slow
def test_a_row_is_what_evaluation_found_and_is_not_done_again(tmp_path, photo_dir, capsys, monkeypatch):
    line = ["compare_quantizers", f"--data_dir={photo_dir}", f"--runs={tmp_path}/runs", f"--out={tmp_path}/out"]
    line += ["--steps=6", "--prior_steps=2", "--seeds=0", "--rows=finite_scalar_9", "--set", *SMALL]
    monkeypatch.setattr(sys, "argv", line)
    compare_quantizers.main()
    result = json.loads((tmp_path / "out" / "finite_scalar_9_seed0.json").read_text())
    found = json.loads((tmp_path / "runs" / "finite_scalar_9_seed0" / "evaluation.json").read_text())
    assert {row["prior"] for row in result["priors"]} == {"pixelcnn", "uniform", "unigram", "positionwise"}
    learned = compare_quantizers.learned(result)
    assert learned["bits_per_dim"] == found["bits_per_dim"]
    assert learned["rate"] + learned["distortion"] == pytest.approx(learned["bits_per_dim"])
    assert [point["step"] for point in result["curve"]] == [1, 2, 3, 4, 5, 6]
    assert all(0 < point["codebook_usage"] <= 1 for point in result["curve"])
    assert str(photo_dir) not in json.dumps(result)
    assert Image.open(tmp_path / "out" / "quantizers.png").size[0] > 500
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["bits_per_dim"] == {"finite_scalar_9, seed 0": found["bits_per_dim"]}
    monkeypatch.setattr(compare_quantizers.commands, "train", None)
    compare_quantizers.main()


def test_an_unknown_row_lists_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_quantizers", "--rows", "finite_scaler_9"])
    with pytest.raises(SystemExit):
        compare_quantizers.main()
    assert "unknown row 'finite_scaler_9': did you mean 'finite_scalar_9'" in capsys.readouterr().err
