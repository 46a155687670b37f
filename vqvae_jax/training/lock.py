"""One trainer a folder: a file that the system locks, so that the lock ends with its process, however suddenly.

Neither a clock nor the number of a process decides who holds it. What the file says is for people, and is emptied in
the end: if it still names somebody, that one was killed.
"""

import contextlib
import getpass
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from vqvae_jax.errors import InputError

try:
    import fcntl
except ImportError:  # another system than Linux and macOS
    fcntl = None

NAME = "lock"


def _myself() -> str:
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a user that the system has no name for
        user = "somebody"
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return f"{user} on {socket.gethostname()}, process {os.getpid()}, since {since}"


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Hold a run's folder, which is made if it isn't there; say so if whoever held it before was killed.

    Raises:
        InputError: another trainer is at work there, or the folder can't be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / NAME, "a+", errors="replace")  # noqa: SIM115 - it is closed below
    except OSError as error:
        raise InputError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir") from error
    with file:
        file.seek(0)
        before = file.readline().strip()
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = f"{workdir} is being trained by {before or 'another program'}"
            raise InputError(f"{what}: wait for it, stop it, or choose another --workdir") from None
        except OSError as error:  # a file system without locks
            print(f"{workdir} can't be locked ({error.strerror}): see to it that nobody else trains there", flush=True)
        if before:
            print(f"{workdir} was left by {before}, which has ended: taken over", flush=True)
        file.truncate(0)
        print(_myself(), file=file, flush=True)
        try:
            yield
        finally:
            file.truncate(0)
