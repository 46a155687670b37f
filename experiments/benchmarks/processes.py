"""Programs that are timed in turns, each in a process of its own that waits while another one is timed."""

import json
import subprocess
import sys
from pathlib import Path

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Process:
    """A program that prints a line of JSON when it is ready, and answers each line of JSON with one."""

    def __init__(self, line: list[str], environment: dict[str, str] | None = None):
        """Start it, without waiting."""
        self.line = line
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True, env=environment)

    def answer(self) -> dict:
        """Wait for the next line; SystemExit if the program has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: ended with status {self.process.wait()}: {' '.join(self.line)}")
        return json.loads(line)

    def ask(self, **request) -> dict:
        """Send a request and wait for its answer."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """End it: there are no more requests."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def peak_mb() -> int | None:
    """Most memory that this process has had at a time, in MB; None where the system doesn't say."""
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) // 1024
