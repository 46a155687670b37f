"""What a soak looks at, and what it calls growth."""

import json
import os
import sys

import pytest

from experiments import soak


def test_growth_compares_the_second_quarter_with_the_last():
    def sample(n):
        grown = 100.0 if n < 2 else 200.0 + n
        return {"memory_mb": grown, "threads": 10 + (n >= 6), "open_files": 5, "compiled_programs": 3 + 9 * (n > 0)}

    found = soak.growth([sample(n) for n in range(8)])
    # Of memory 202 and 203 against 206 and 207; what comes before, and between, doesn't count.
    assert found == {"memory_mb": 1.98, "threads": 10.0, "open_files": 0.0, "compiled_programs": 0.0}


def test_a_process_is_seen_as_it_is(tmp_path):
    log = tmp_path / "log"
    log.write_text("Finished XLA compilation of jit(a) in 1 sec\nCompiling jit(b)\n")
    before = soak.look(os.getpid(), log)
    with open(log):
        after = soak.look(os.getpid(), log)
    assert after["open_files"] == before["open_files"] + 1
    assert before["compiled_programs"] == 1
    assert before["memory_mb"] > 50


@pytest.mark.slow
def test_a_short_soak_sees_the_real_program(tmp_path, photo_dir, monkeypatch, capsys):
    words = [f"--work={tmp_path / 'work'}", "--config=configs/quickstart.py:smoke", f"--data_dir={photo_dir}"]
    words += ["--minutes=0.3", "--every=1", f"--out={tmp_path / 'soak.json'}"]
    monkeypatch.setattr(sys, "argv", ["soak", *words])
    soak.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "soak.json").read_text())
    assert result["steps"] > 0
    assert result["exit_status"] == 130, "it was asked to stop, and saved itself"
    assert 8 <= len(result["samples"]) <= 18
    assert result["samples"][-1]["compiled_programs"] >= 2, "drawing the first state, and the step"
