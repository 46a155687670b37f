"""Two real processes of four virtual devices each on loopback are one: the same batches, stops, files and numbers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_loop import final_state

from vqvae_jax import main
from vqvae_jax.data import batches
from vqvae_jax.data.splits import ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.training import processes, sharding
from vqvae_jax.training.record import read_record

ROOT = Path(__file__).parents[2]
OPTIONS = ["--config.model.hidden=6", "--config.model.residual_units=4", "--config.data.batch_size=8"]
OPTIONS += ["--config.train.num_steps=16", "--config.train.log_every=1", "--config.train.eval_every=8"]
OPTIONS += ["--config.model.likelihood=logistic", "--config.optimizer.name=adam", "--config.optimizer.warmup_steps=50"]
OPTIONS += ["--config.train.checkpoint_every=2", "--config.optimizer.learning_rate=1e-3"]
OPTIONS += ["--config.prior.batch_size=8", "--config.prior.num_steps=12", "--config.prior.log_every=1"]
OPTIONS += ["--config.prior.eval_every=2", "--config.prior.features=4", "--config.prior.layers=1"]
OPTIONS += ["--config.eval.validation_images=13", "--config.eval.test_images=21", "--config.eval.samples=0"]
OPTIONS += ["--config.eval.batch_size=16", "--config.eval.fit_images=16", "--config.eval.final_fit_images=43"]
# The real command, which also notes a digest of every global batch, and takes its time, so that it can be stopped.
PROGRAM = """
import sys, time
from vqvae_jax import main
from vqvae_jax.training import checkpoint, loop, sharding
notes, make = open(sys.argv.pop(1), "a", buffering=1), loop.make_train_step

def noting(*args, **options):
    step = make(*args, **options)
    def noted(state, batch):
        print(args[-1], int(state.step) + 1, checkpoint.digest(sharding.whole(batch)), file=notes)
        time.sleep(0.3)
        return step(state, batch)
    return noted

loop.make_train_step = noting
main.run()
"""


def start(notes, *words, number=2, devices=8):
    """Start a command as `number` processes that have so many devices together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices // number}"
    found = []
    for n in range(number):
        words_of_one = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={number}", f"--process_id={n}"]
        line = [sys.executable, "-c", PROGRAM, f"{notes}.{n}", *words, *(words_of_one if number > 1 else [])]
        found.append(subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return found


def ended(started):
    """Wait for all; give their exit statuses and what they printed."""
    outs = [process.communicate() for process in started]
    return [process.returncode for process in started], outs


def wait_for_step(started, folder, step):
    while max((line["step"] for line in read_record(folder)), default=0) < step:
        assert all(process.poll() is None for process in started), ended(started)
        time.sleep(0.1)


def training(workdir, photo_dir):
    return f"--config={ROOT}/configs/quickstart.py:smoke", *OPTIONS, f"--workdir={workdir}", f"--data_dir={photo_dir}"


def notes_of(path):
    """Digests of batches by stage and step, of all starts of a process; a step that is done twice has one batch."""
    found = {}
    for line in Path(path).read_text().splitlines():
        stage, step, digest = line.split()
        assert found.setdefault((stage, int(step)), digest) == digest
    return found


def assert_near(one, other, where=""):
    """Compare JSON, numbers to 1e-5."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
    if isinstance(one, (dict, list)):
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_near(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, float):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=where)
    else:
        assert one == other, where


@pytest.mark.slow
def test_two_processes_killed_stopped_and_of_another_number_are_one(tmp_path, photo_dir):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    codes, outs = ended(start(tmp_path / "one", *training(whole, photo_dir), number=1))
    assert codes == [0], outs
    # One of two is killed: the other one ends, too.
    two = start(tmp_path / "two", *training(parts, photo_dir))
    wait_for_step(two, parts, 5)
    two[1].kill()
    codes, outs = ended(two)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    # One process and one device go on from there, and are asked to stop.
    alone = start(tmp_path / "alone", *training(parts, photo_dir), number=1, devices=1)
    wait_for_step(alone, parts, 9)
    alone[0].send_signal(signal.SIGTERM)
    codes, outs = ended(alone)
    assert codes == [130], outs
    assert "model: resumed at step" in outs[0][0]
    # And two again, of which one is asked to stop in the second stage: both do, at the same step.
    two = start(tmp_path / "two", *training(parts, photo_dir))
    wait_for_step(two, parts / "prior", 3)
    two[1].send_signal(signal.SIGTERM)
    codes, outs = ended(two)
    assert codes == [130, 130], outs
    saved = max(int(path.name) for path in (parts / "checkpoints" / "prior").iterdir())
    assert f"stopped at step {saved} and saved" in outs[0][0]
    assert max(notes_of(tmp_path / "two.0")) == max(notes_of(tmp_path / "two.1")) == ("prior", saved)
    codes, outs = ended(start(tmp_path / "two", *training(parts, photo_dir)))
    assert codes == [0, 0], outs
    assert "prior: resumed at step" in outs[0][0]
    assert "table:" in outs[0][0]
    assert "table:" not in outs[1][0]
    check_same(tmp_path, whole, parts)


def check_same(tmp_path, whole, parts):
    """Compare two runs, and what reads them in one process and in two."""
    batches_of_one = notes_of(tmp_path / "one.0")
    assert len(batches_of_one) == 16 + 12
    for name in ("two.0", "two.1", "alone.0"):
        for key, digest in notes_of(tmp_path / name).items():
            assert digest == batches_of_one[key], (name, key)
    for key, array in final_state(whole)[1].items():
        np.testing.assert_allclose(final_state(parts)[1][key], array, rtol=1e-3, atol=1e-5, err_msg=key)
    for folder in ("", "prior"):
        record = [read_record(run / folder) for run in (whole, parts)]
        timeless = [[{k: v for k, v in line.items() if "/" in k or k == "step"} for line in lines] for lines in record]
        assert_near(*timeless)
    results = [json.loads((run / "evaluation.json").read_text()) for run in (whole, parts)]
    assert results[0]["prior"] == "pixelcnn"
    assert_near(*results)
    assert len(list((parts / "figures").iterdir())) == len(list((whole / "figures").iterdir()))
    (parts / "evaluation.json").unlink()
    codes, outs = ended(start(tmp_path / "read", "--mode=evaluate", f"--workdir={parts}"))
    assert codes == [0, 0], outs
    assert_near(json.loads((parts / "evaluation.json").read_text()), results[1])
    for number in (1, 2):
        words = "--mode=sample", f"--workdir={parts}", "--num=6", f"--output={tmp_path / str(number)}"
        codes, outs = ended(start(tmp_path / "read", *words, number=number))
        assert codes == [0] * number, outs
    one, two = (np.load(tmp_path / str(number) / "samples.npz")["images"] for number in (1, 2))
    np.testing.assert_array_equal(one, two)


DETECTED = """
from vqvae_jax.training import processes
processes.start()
import jax, sys
with processes.first_alone("report"):
    print("alone", jax.process_index())
stop = bool(processes.in_any(jax.process_index() == 1))
print(jax.process_index(), jax.process_count(), jax.device_count(), stop, file=sys.stderr)
"""


@pytest.mark.slow
def test_tasks_of_a_slurm_job_find_each_other(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_PORT": port}
    env |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    started = []
    for n in "01":
        tasks = env | {"SLURM_PROCID": n, "SLURM_LOCALID": n}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", DETECTED], env=tasks, **pipes))
    codes, outs = ended(started)
    assert codes == [0, 0], outs
    assert [err.splitlines()[-1] for _, err in outs] == ["0 2 4 True", "1 2 4 True"]
    assert "alone 0" in outs[0][0]
    assert "alone" not in outs[1][0]


@pytest.mark.slow
def test_compressing_is_refused_in_one_line(tmp_path):
    words = "--mode=compress", "--workdir=x", "--input=y", "--output=z"
    codes, outs = ended(start(tmp_path / "notes", *words))
    assert codes == [2, 2]
    assert [err.strip() for _, err in outs] == [
        "error: --coordinator is for --mode=train or evaluate or reconstruct or sample or complete, not compress"
    ] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1", 2, None), "belong together: give all or none"),
        (("localhost:1", 2, 2), "--process_id is 2: it must be below --num_processes=2"),
        (("localhost", 2, 0), "--coordinator is 'localhost': give HOST:PORT"),
        (("1234", 2, 0), "--coordinator is '1234': give HOST:PORT"),
    ],
)
def test_flags_that_name_no_processes_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        processes.start(*given)


def test_flags_reach_the_start(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(processes, "start", lambda **flags: given.append(flags))
    monkeypatch.setattr(
        sys, "argv", ["vqvae", "--mode=evaluate", "--workdir=none", "--coordinator=a:1", "--process_id=0"]
    )
    with pytest.raises(SystemExit):
        main.run()
    assert "no run in none" in capsys.readouterr().err
    assert given == [{"coordinator": "a:1", "num_processes": None, "process_id": 0}]


@pytest.mark.parametrize("tasks", ["1", ""])
def test_one_process_waits_for_nobody(monkeypatch, tasks):
    """Neither in a SLURM job of one task nor where there is no cluster."""

    def initialize(*given):
        assert not tasks
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    processes.start()
    with processes.first_alone("nobody"):
        assert (processes.in_any(True), processes.in_any(False)) == (True, False)


def test_processes_that_do_not_find_each_other_are_one_line(monkeypatch):
    def initialize(*given):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match="do not find each other: DEADLINE_EXCEEDED: no answer$"):
        processes.start("localhost:1", 2, 1)


@pytest.mark.parametrize(("size", "number", "num_images"), [(4, 2, 0), (5, 3, 0), (16, 4, 13), (2, 8, 21), (7, 1, 21)])
def test_processes_read_their_rows_alone_and_all_of_them(monkeypatch, size, number, num_images):
    images = np.random.default_rng(0).integers(0, 256, (21, 2, 2, 3), dtype=np.uint8)
    source, taken, found = ArraySource("tiny", "test", images, np.arange(21, dtype=np.int32), ("one",)), [], []
    take = ArraySource.take
    monkeypatch.setattr(ArraySource, "take", lambda self, rows: (taken.extend(rows.tolist()), take(self, rows))[1])
    monkeypatch.setattr(jax, "process_count", lambda: number)
    for process in range(number):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(list(batches.eval_batches(source, size, num_images)))
    assert sorted(taken) == list(range(num_images or 21))
    for key, wanted in (("image", images), ("label", source.labels)):
        of_steps = [
            {name: np.concatenate([of_one[name] for of_one in step]) for name in ("mask", key)}
            for step in zip(*found, strict=True)
        ]
        assert all(len(step["mask"]) == -(-size // number) * number for step in of_steps)
        got = np.concatenate([step[key][step["mask"]] for step in of_steps])
        np.testing.assert_array_equal(got, wanted[: num_images or 21])


def test_rows_lie_on_the_devices_in_the_order_of_processes(monkeypatch):
    class Device:
        def __init__(self, process_index, id):
            self.process_index, self.id = process_index, id

    scattered = [Device(n % 2, 7 - n) for n in range(8)]
    seen = []
    monkeypatch.setattr(jax, "devices", lambda: scattered)
    monkeypatch.setattr(sharding, "Mesh", lambda devices, *_, **__: seen.extend(devices))
    with pytest.raises(TypeError):  # there is no mesh of None
        sharding.placed.__wrapped__("data")
    assert [(device.process_index, device.id) for device in seen] == sorted((n % 2, 7 - n) for n in range(8))
