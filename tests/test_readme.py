"""The README's commands are run, its file map is complete, and its numbers come from result files."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments" / "results"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]
TRAINING = [line for line in COMMANDS if "vqvae_jax.main" in line and "--mode" not in line]
READING = [line for line in COMMANDS if "vqvae_jax.main" in line and "--mode" in line]


def run(line, cwd):
    words = shlex.split(line.replace("configs/", f"{ROOT}/configs/"))
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
    for line in TRAINING:
        words = [word for word in line.split() if not word.startswith("--data_dir")]
        codebooks = "" if "families.py:vae" in line else "--config.model.num_codebooks=2"
        run(f"{' '.join(words)} {small} {codebooks}", tmp_path)
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


def test_links_to_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
