"""One trainer a folder, whatever a clock says; and whoever was killed holds nothing."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vqvae_jax.errors import InputError
from vqvae_jax.training.lock import NAME, held

ROOT = Path(__file__).parents[2]
HOLD = "import sys, time, pathlib; from vqvae_jax.training.lock import held; "
HOLD += "lock = held(pathlib.Path(sys.argv[1])); lock.__enter__(); print('held', flush=True); time.sleep(100)"


@pytest.fixture
def other(tmp_path):
    """Another program that holds a folder."""
    line = [sys.executable, "-c", HOLD, str(tmp_path / "a rün")]
    program = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "held\n"
    yield tmp_path / "a rün", program
    program.kill()
    program.wait()


def refused(folder):
    with pytest.raises(InputError) as caught, held(folder):
        pass
    return str(caught.value)


def test_a_second_trainer_is_told_who_the_first_is(other):
    folder, program = other
    owner = rf"\S+ on \S+, process {program.pid}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    expected = (
        f"{re.escape(str(folder))} is being trained by {owner}: wait for it, stop it, or choose another --workdir"
    )
    assert re.fullmatch(expected, refused(folder))


def test_a_lock_of_a_killed_trainer_is_taken_over_and_it_is_said(other, capsys):
    folder, program = other
    program.send_signal(signal.SIGKILL)
    program.wait()
    with held(folder):
        assert re.search(
            rf"was left by \S+ on \S+, process {program.pid}, since .*: taken over", capsys.readouterr().out
        )
        assert f"process {os.getpid()}, " in (folder / NAME).read_text()


@pytest.mark.parametrize("jump", [-(10**9), 10**8])
def test_no_clock_is_believed(other, jump, capsys):
    folder, program = other
    text = re.sub("since .*", "since 2099-01-01 00:00:00 UTC", (folder / NAME).read_text())
    (folder / NAME).write_text(text)
    os.utime(folder / NAME, (time.time() + jump, time.time() + jump))
    assert "since 2099-01-01" in refused(folder)
    program.kill()
    program.wait()
    with held(folder):
        assert "since 2099-01-01 00:00:00 UTC, which has ended: taken over" in capsys.readouterr().out


def test_the_number_of_a_living_process_is_no_lock(tmp_path):
    (tmp_path / NAME).write_text(f"ann on here, process {os.getpid()}, since today\n")
    with held(tmp_path):
        pass


def test_after_an_end_of_any_kind_but_a_kill_there_is_nothing_to_say(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), held(tmp_path):
        raise KeyboardInterrupt
    with held(tmp_path), pytest.raises(InputError, match="is being trained by"), held(tmp_path):
        pass
    with held(tmp_path):
        pass
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert (
        refused(tmp_path / "file" / "run")
        == f"cannot write to {tmp_path}/file/run: Not a directory; choose another --workdir"
    )
