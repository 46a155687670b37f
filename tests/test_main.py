"""The command as a user runs it: what it prints, what it writes, and one line for every mistake."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae_jax import api, main
from vqvae_jax.data import sources
from vqvae_jax.errors import InputError
from vqvae_jax.priors.ancestral import Options

ROOT = Path(__file__).parent.parent
QUICK = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"
TINY = ["--config.model.hidden=4", "--config.model.residual_units=4", "--config.train.num_steps=2"]


def command(*arguments, cwd):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "vqvae_jax.main", *arguments]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo_dir):
    """A folder in which one tiny run was trained by the command, and what the command said."""
    folder = tmp_path_factory.mktemp("user")
    done = command(QUICK, *TINY, f"--data_dir={photo_dir}", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def test_training_writes_and_names_everything(folder):
    out = (folder / "stdout").read_text()
    run = folder / "runs" / "quickstart-smoke"
    for name in ("evaluation.json", "metrics.jsonl", "checkpoints/model/2"):
        assert f"runs/quickstart-smoke/{name}" in out
        assert (run / name).exists()
    figures = ["curves.png", "extremes.png", "per_class.png", "prior_curves.png", "reconstructions.png", "samples.png"]
    assert f"runs/quickstart-smoke/figures/: {', '.join(figures)}" in out
    assert sorted(path.name for path in (run / "figures").iterdir()) == figures
    assert (run / "config.json").exists()
    assert any((run / "tensorboard").iterdir())
    result = json.loads((run / "evaluation.json").read_text())
    assert result["bits_per_dim"] == pytest.approx(result["rate"] + result["distortion"])
    assert f"{result['bits_per_dim']:.3f}" in out
    assert (result["dataset"], result["split"], result["step"]) == ("photos", "test", 2)


def test_training_is_quiet_but_for_its_progress(folder):
    for line in (folder / "stderr").read_text().replace("\r", "\n").splitlines():
        assert not line.strip() or line.startswith(("train ", "codes of the training images")), line
    assert "images/s" in (folder / "stderr").read_text()
    assert "bits/dim" in (folder / "stderr").read_text()


def test_the_same_command_again_goes_straight_to_the_table(folder, photo_dir):
    before = (folder / "runs/quickstart-smoke/metrics.jsonl").read_text()
    done = command(QUICK, *TINY, f"--data_dir={photo_dir}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "model: resumed at step 2" in done.stdout
    assert "prior: resumed at step 10" in done.stdout
    assert (folder / "runs/quickstart-smoke/metrics.jsonl").read_text() == before


def test_evaluate_needs_the_run_alone_and_agrees(folder):
    run = folder / "runs" / "quickstart-smoke"
    before = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    done = command("--mode=evaluate", f"--workdir={run}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "evaluation.json").read_text()) == before
    done = command("--mode=evaluate", f"--workdir={run}", "--split=validation", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "evaluation.json").read_text()) == before
    assert json.loads((run / "evaluation_validation.json").read_text())["split"] == "validation"


def test_reconstruct_takes_the_split_or_image_files(folder):
    run = folder / "runs" / "quickstart-smoke"
    done = command("--mode=reconstruct", f"--workdir={run}", "--num=5", "--output=five.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert Image.open(folder / "five.png").size == ((5 * 34 - 2) * 2, (2 * 34 - 2) * 2)
    pixels = np.random.default_rng(0).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "mine.png")
    Image.fromarray(pixels[:32, :32]).save(folder / "small.png")
    files = ["--input=mine.png", "--input=small.png", "--output=mine_out.png"]
    done = command("--mode=reconstruct", f"--workdir={run}", *files, cwd=folder)
    assert done.returncode == 0, done.stderr
    shown = np.asarray(Image.open(folder / "mine_out.png"))[::2, ::2]
    np.testing.assert_array_equal(shown[:36, :40], pixels)


def test_sample_and_complete_need_the_run_alone(folder):
    run = folder / "runs" / "quickstart-smoke"
    done = command("--mode=sample", f"--workdir={run}", "--num=5", "--temperature=0.8", "--top_k=9", cwd=folder)
    assert done.returncode == 0, done.stderr
    expected = api.load(run).sample(5, options=Options(temperature=0.8, top_k=9))
    with np.load(run / "samples" / "samples.npz") as file:
        np.testing.assert_array_equal(file["images"], expected)
    shown = np.asarray(Image.open(run / "samples" / "grid.png"))[::2, ::2]
    np.testing.assert_array_equal(shown[:, 34:66], expected[1])
    np.testing.assert_array_equal(np.asarray(Image.open(run / "samples" / "0004.png")), expected[4])
    done = command("--mode=complete", f"--workdir={run}", "--num=3", "--keep=0.25", "--output=c.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    originals, given, completed = np.split(np.asarray(Image.open(folder / "c.png"))[::2, ::2][:, :32], [33, 67])
    np.testing.assert_array_equal(given[1:9], originals[:8])
    assert np.all(given[9:33] == 128)
    assert completed.shape[0] >= 32


def test_data_of_other_classes_are_not_measured(folder, photo_dir):
    run = api.load(folder / "runs" / "quickstart-smoke")
    source = dataclasses.replace(sources.photos("test", photo_dir), class_names=("cat", "dog"))
    with pytest.raises(InputError, match="the classes of photos are not those that the run was trained with"):
        main.report(run, folder / "runs" / "quickstart-smoke", source)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--mode=train needs a config: e.g. --config=configs/quickstart.py"),
        ([QUICK, "--config.model.hiden=4"], "unknown option model.hiden: did you mean 'model.hidden'?"),
        ([QUICK, "--config.model.hidden=wide"], "hidden"),
        ([QUICK, "--config.data.name=cifar"], "unknown dataset 'cifar': did you mean 'cifar10'?"),
        ([QUICK, "--config.model.likelihood=gauss"], "unknown likelihood 'gauss'"),
        ([QUICK, "--config.model.codebook_size=1"], "a codebook needs at least 2 codes"),
        ([QUICK, "--config.data.name=cifar10", "--data_dir=nowhere"], "no data folder nowhere"),
        (["--config=configs/none.py"], "no config file"),
        ([f"--config={ROOT}/configs/cifar10.py:tiny"], "unknown variant 'tiny' of cifar10: known: paper, small, smoke"),
        (["--mode=evalute", QUICK], "unknown mode 'evalute': did you mean 'evaluate'?"),
        (["--mode=evaluate"], "--mode=evaluate needs --workdir=RUN"),
        (["--mode=evaluate", "--workdir=nowhere"], "no run in nowhere: train first"),
        (["--mode=reconstruct", "--workdir=RUN", "--input=none.png"], "cannot read none.png"),
        (
            ["--mode=reconstruct", "--workdir=RUN", "--input=text.png"],
            "text.png is not an image that can be used: its format is unknown",
        ),
        (
            ["--mode=reconstruct", "--workdir=RUN", "--input=odd.png"],
            "images of 33x32 do not fit: sides must be multiples of 4",
        ),
        (
            ["--mode=reconstruct", "--workdir=RUN", "--output=grid"],
            "cannot write a picture to grid: its name must end in .png",
        ),
        (["--mode=reconstruct", "--workdir=RUN", "some.png"], "image files are named with --input=some.png"),
        ([QUICK, "--workdir=RUN"], "holds a run of another config: "),
        (["--mod=evaluate"], "mod"),
        (["--mode=sample", "--workdir=RUN", "--temperature=0"], "the temperature is 0.0: it must be above 0"),
        (["--mode=sample", "--workdir=RUN", "--top_k=1000"], "top_k is 1000: it must be 0 (all) to 128"),
        (["--mode=sample", "--workdir=RUN", "--class=cofee"], "unknown class 'cofee': did you mean 'coffee'?"),
        (["--mode=sample", "--workdir=RUN", "--class=coffee"], "this prior knows no classes"),
        (["--mode=complete", "--workdir=RUN", "--keep=1"], "the share to keep is 1.0: it must be between 0 and 1"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(folder, arguments, message):
    (folder / "text.png").write_text("not an image")
    Image.new("RGB", (32, 33)).save(folder / "odd.png")
    run = str(folder / "runs" / "quickstart-smoke")
    arguments = [
        argument.replace("RUN", run) if argument.startswith("--workdir") else argument for argument in arguments
    ]
    done = command(*arguments, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message.replace("RUN", "") in done.stderr


@pytest.mark.parametrize("tensorboard", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_full_disk_is_one_line(folder, photo_dir, tensorboard):
    """The system itself refuses to write a file of more than 20 kB: orbax's threads fail as on a full disk."""
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    limit += "sys.argv[0] = 'main'; runpy.run_module('vqvae_jax.main', run_name='__main__')"
    steps = [
        "--config.train.num_steps=4",
        "--config.train.checkpoint_every=2",
        f"--config.logging.tensorboard={tensorboard}",
    ]
    line = [
        sys.executable,
        "-c",
        limit,
        QUICK,
        *TINY,
        *steps,
        f"--data_dir={photo_dir}",
        f"--workdir=full-{tensorboard}",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line and not line.startswith("train ")]
    assert lines == [
        "error: no space left on disk: make room and run the same command, it goes on from the last checkpoint"
    ]
