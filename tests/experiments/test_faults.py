"""The program that kills and damages runs, in its smallest form, and what it calls different."""

import itertools
import json
import sys

import pytest

from experiments import faults


@pytest.mark.slow
def test_kills_and_damage_are_counted_and_gone_on_with(tmp_path, photo_dir, monkeypatch, capsys):
    monkeypatch.setattr(
        faults, "OPTIONS", [*faults.OPTIONS, "--config.train.num_steps=20", "--config.prior.num_steps=20"]
    )
    words = [f"--work={tmp_path / 'work'}", f"--data_dir={photo_dir}", "--resume_every=100"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["faults", *words, *more])
        status = faults.main()
        return status, json.loads(capsys.readouterr().out.splitlines()[-1])

    status, result = run("--kills=1", "--flips=6")
    assert (status, result["kill"], result["damage"], result["different"]) == (0, 1, 6, 0)
    assert result["named"] + result["changes nothing"] == 6
    assert all(case["message"].count("\n") == 0 for case in result["cases"] if "message" in case)
    # What is done stays done, and another outcome of the whole run is noticed.
    cases = tmp_path / "work" / "cases.jsonl"
    before, numbers = cases.read_bytes(), itertools.count()
    monkeypatch.setattr(faults, "outcome", lambda workdir: next(numbers))
    status, more = run("--kills=2", "--flips=6")
    assert cases.read_bytes().startswith(before)
    assert (more["kill"], more["different"], status) == (2, 1, 1)
