"""The start of a program: once more, with its memory in huge pages, before anything else is imported."""

import contextlib
import importlib
import os
import sys
import threading

TUNABLES = "GLIBC_TUNABLES"
OFF = "--nohuge_pages"
STATUS = "/sys/kernel/mm/transparent_hugepage/enabled"


def with_huge_pages() -> None:
    """Start this program again with memory in huge pages, which glibc decides on before `main`, or do nothing.

    Nothing is done where Linux or glibc (before 2.35) have none to give on request, nor if the user has set
    GLIBC_TUNABLES or given --nohuge_pages, nor in a program that is already at work, such as a notebook or a debugger.
    """
    if TUNABLES in os.environ or OFF in sys.argv or threading.active_count() > 1:
        return
    with contextlib.suppress(OSError, ValueError):  # another system, another libc, or it can't be started again
        with open(STATUS) as file:
            on_request = "[madvise]" in file.read()  # where they are given to all, glibc has nothing to do
        if on_request and (os.confstr("CS_GNU_LIBC_VERSION") or "") >= "glibc 2.35":
            again = [sys.executable, *sys.orig_argv[1:]]
            os.execve(sys.executable, again, {**os.environ, TUNABLES: "glibc.malloc.hugetlb=1"})


def command() -> None:
    """Run `vqvae`; the module `main` imports jax, so that it comes second."""
    with_huge_pages()
    importlib.import_module("vqvae_jax.main").run()
