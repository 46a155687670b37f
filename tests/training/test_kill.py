"""The real program, killed with -9 at random moments, ends in the bits of a run that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_loop import assert_same_run

from vqvae_jax.training.record import read_record

ROOT = Path(__file__).parents[2]
KILLS = 3
OPTIONS = ["--config.model.hidden=8", "--config.data.batch_size=8", "--config.train.num_steps=400"]
OPTIONS += ["--config.model.likelihood=logistic", "--config.optimizer.name=adam", "--config.optimizer.warmup_steps=50"]
OPTIONS += ["--config.train.checkpoint_every=20", "--config.train.eval_every=40", "--config.train.log_every=1"]


def start(workdir, photo_dir):
    line = [sys.executable, "-m", "vqvae_jax.main", f"--config={ROOT}/configs/quickstart.py:smoke", *OPTIONS]
    line += [f"--workdir={workdir}", f"--data_dir={photo_dir}"]
    # The arithmetic of users, not that of the other tests, which skip optimizations (and have other compiled programs).
    env = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    env |= {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "optimized"),
    }
    return subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines(workdir):
    path = Path(workdir) / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def saved_steps(workdir):
    folder = Path(workdir) / "checkpoints" / "model"
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_in_the_same_bits(tmp_path, photo_dir):
    assert start(tmp_path / "whole", photo_dir).wait() == 0
    moments, kills, resumed = random.Random(0), 0, 0
    workdir = tmp_path / "killed"
    while kills < KILLS:
        resumed += bool(saved_steps(workdir))
        process, before = start(workdir, photo_dir), lines(workdir)
        # Wait until it trains, then a random moment more, so that the kills fall into all of its work.
        while lines(workdir) in (0, before) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 1.5))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert resumed, "every kill came before the first checkpoint: nothing was resumed"
    assert kills == KILLS, "the run ended before it was killed often enough: give it more steps"
    assert start(workdir, photo_dir).wait() == 0
    assert_same_run(tmp_path / "whole", workdir)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_saves_first_and_says_so(tmp_path, photo_dir, number):
    process = start(tmp_path, photo_dir)
    while lines(tmp_path) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == 130
    recorded = [line["step"] for line in read_record(tmp_path)]
    assert max(saved_steps(tmp_path)) == max(recorded) >= 3
