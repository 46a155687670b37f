"""The README's commands are run, its file map is complete, and its numbers come from result files."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae_jax import api, builders, evaluate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments" / "results"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]
TRAINING = [line for line in COMMANDS if "vqvae_jax.main" in line and "--mode" not in line]
READING = [line for line in COMMANDS if "vqvae_jax.main" in line and "--mode" in line]


def run(line, cwd):
    line = line.replace("configs/", f"{ROOT}/configs/").replace("experiments/results", str(RESULTS))
    words = shlex.split(line)
    words = words[words.index("python") + 1 :]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_training_and_reading_commands_run_in_smoke_form(tmp_path, photo_dir):
    assert TRAINING
    assert READING
    small = f"--config.data.name=photos --data_dir={photo_dir} --config.model.hidden=4 --config.model.residual_units=4"
    small += " --config.train.num_steps=2 --config.data.batch_size=4 --config.eval.test_images=8"
    small += " --config.eval.validation_images=8 --config.eval.fit_images=8"
    small += " --config.eval.samples=2 --config.eval.subset_images=4 --config.eval.subset_samples=3"
    prior = "--config.prior.num_steps=2 --config.prior.batch_size=4 --config.prior.features=32 --config.prior.layers=1"
    for line in TRAINING:
        words = [word for word in line.split() if not word.startswith("--data_dir")]
        codebooks = "" if "families.py:vae" in line else "--config.model.num_codebooks=2"
        # Drawing 32x32 codes takes unoptimised programs a while, and nothing in it is ImageNet's.
        stage = "--config.prior.name=none" if "imagenet" in line else prior
        run(f"{' '.join(words)} {small} {stage} {codebooks}", tmp_path)
    (tmp_path / "photo.png").write_bytes((Path(photo_dir) / "coffee.png").read_bytes())
    for line in READING:
        run(line, tmp_path)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, photo_dir):
    line = f"python -m vqvae_jax.main --config=configs/quickstart.py:smoke --data_dir={photo_dir} --workdir=runs/quickstart"
    run(line, tmp_path)
    code = "\n".join(blocks("python"))
    assert "vqvae_jax.load" in code
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)


def test_the_file_map_names_every_module():
    listed = set(re.findall(r"\b(\w+\.py)\b", README.partition("## File map")[2]))
    existing = {path.name for path in (ROOT / "vqvae_jax").rglob("*.py")} - {"__init__.py"}
    assert existing <= listed


def test_every_number_with_a_unit_stands_in_a_result_file():
    # <!-- results/FILE:KEY --> after a number says where it comes from; the digits shown must agree.
    found = re.findall(r"([\d.]+) <!-- (\S+?):([^>]+?) -->", README)
    assert found
    for shown, name, keys in found:
        value = json.loads((RESULTS / name).read_text())
        for key in keys.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        digits = len(shown.partition(".")[2])
        assert f"{value:.{digits}f}" == shown, f"{name}:{keys} is {value}, the README says {shown}"


@pytest.mark.slow
def test_the_committed_run_has_the_figure_that_is_printed_for_it():
    run = api.load(RESULTS / "small_run")
    source = builders.build_source(run.meta["config"]["data"], "test")
    printed = json.loads((RESULTS / "quickstart" / "evaluation.json").read_text())
    found = evaluate.evaluate(run, source)
    for key in ("bits_per_dim", "rate", "distortion"):
        assert found[key] == pytest.approx(printed[key], abs=2e-3)  # other processors round otherwise


def test_the_committed_run_samples(tmp_path):
    line = next(line for line in READING if "small_run" in line)
    run(line, tmp_path)
    files = sorted((tmp_path / "samples").glob("0*.png"))
    images = np.load(tmp_path / "samples" / "samples.npz")["images"]
    np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in files], images)
    assert len(files) == 64


def test_links_to_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
