"""The second start, with huge pages: of the command alone, once, and never against the user's will."""

import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vqvae_jax import start

ROOT = Path(__file__).parent.parent
HUGE = "glibc.malloc.hugetlb=1"
SCRIPT = (
    "import sys\nfrom vqvae_jax.start import command\nif __name__ == '__main__':\n    sys.exit(command())\n"  # pip's
)
PROBE = """
import json, os, sys
print(json.dumps([os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys._xoptions, sys.argv[1:], os.environ["XLA_FLAGS"]]))
"""


def given_here():
    """What the variable is at last, on this machine."""
    file, libc = Path("/sys/kernel/mm/transparent_hugepage/enabled"), platform.libc_ver()
    new = libc[0] == "glibc" and [*map(int, libc[1].split("."))] >= [2, 35]
    return HUGE if new and file.is_file() and "[madvise]" in file.read_text().split() else None


def run(*line, **env):
    kept = {key: value for key, value in os.environ.items() if key not in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    line = [sys.executable, "-X", "probe=1", *map(str, line)]
    process = subprocess.Popen(
        line, env={**kept, "PYTHONPATH": str(ROOT), **env}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return process, *process.communicate()


@pytest.mark.parametrize(
    ("form", "words", "expected"),
    [("module", [], given_here()), ("script", [], given_here()), ("module", [start.OFF], None)],
)
def test_the_command_starts_once_more_as_the_same_process_with_the_same_arguments(tmp_path, form, words, expected):
    (tmp_path / "vqvae").write_text(SCRIPT)
    (tmp_path / "a probe ü.py").write_text(PROBE)
    line = ["-m", "vqvae_jax.main"] if form == "module" else [tmp_path / "vqvae"]
    words = [f"--config={tmp_path}/a probe ü.py", '--workdir=it\'s a "run" *', *words]
    process, out, err = run(*line, *words)
    assert json.loads(out) == [expected, process.pid, {"probe": "1"}, words, "--xla_gpu_deterministic_ops=true"]
    assert process.returncode == 2
    assert err == f"error: {tmp_path}/a probe ü.py is no config: it has no function get_config\n"


def test_importing_the_command_starts_nothing():
    """Not in a notebook, nor in a worker, for which multiprocessing runs the module under another name."""
    code = "import os, runpy; runpy.run_module('vqvae_jax.main', run_name='__mp_main__'); import vqvae_jax.main; "
    process, out, err = run("-c", code + "print(os.environ.get('GLIBC_TUNABLES'))")
    assert (process.returncode, out, err) == (0, "None\n", "")


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The second starts of a machine that has huge pages, and makes them fail, as where programs can't be started."""
    calls = []

    def execve(*call):
        calls.append(call)
        raise PermissionError

    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(start, "STATUS", str(tmp_path / "enabled"))
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(os, "confstr", lambda name: {"CS_GNU_LIBC_VERSION": "glibc 2.35"}[name])
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(sys, "executable", "/bin/python")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "it", "a b"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_a_start_that_fails_is_the_only_one_and_silent(started, capfd):
    start.with_huge_pages()
    [(program, words, env)] = started
    assert (program, words) == ("/bin/python", ["/bin/python", "-m", "it", "a b"])
    assert env == {**os.environ, "GLIBC_TUNABLES": HUGE}
    assert capfd.readouterr() == ("", "")


def test_nothing_starts_where_it_would_not_help_or_is_not_wanted(started, monkeypatch, tmp_path):
    def no_glibc(name):
        raise ValueError("unrecognized configuration name")

    for change in (
        lambda patch: patch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3"),
        lambda patch: patch.setenv("GLIBC_TUNABLES", ""),
        lambda patch: patch.setattr(sys, "argv", ["vqvae", "--nohuge_pages"]),
        lambda patch: patch.setattr(threading, "active_count", lambda: 2),
        lambda patch: patch.setattr(start, "STATUS", str(tmp_path / "none")),
        lambda patch: patch.setattr(os, "confstr", lambda name: "glibc 2.34"),
        lambda patch: patch.setattr(os, "confstr", no_glibc),
        lambda patch: (tmp_path / "enabled").write_text("[always] madvise never\n"),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            start.with_huge_pages()
    assert started == []
