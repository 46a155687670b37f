"""The one exception that a user's mistake raises, which `main` prints as a single line, and how to know a full disk."""

import difflib
import errno
import math
import os
from collections.abc import Iterable

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Something that the user can put right: its message says what is wrong and what to do."""


def suggest(wrong: str, known: Iterable[str]) -> str:
    """Name the known word nearest to `wrong`, then all of them: the end of an error message."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names)}"


def at_least(section: str, **limits: tuple) -> None:
    """Raise InputError unless every option of a section, given as (value, lowest), is in range."""
    for key, (value, lowest) in limits.items():
        if not lowest <= value < math.inf:
            finite = ", and finite" if value == math.inf else ""
            raise InputError(f"{section}.{key} is {value}: it must be at least {lowest}{finite}")


def is_out_of_space(error: BaseException | None) -> bool:
    """Tell whether an error, of Python or of a library in C++, or its cause says that the disk or a quota is full."""
    if error is None:
        return False
    full = any(getattr(error, "errno", None) == code or os.strerror(code) in str(error) for code in OUT_OF_SPACE)
    return full or is_out_of_space(error.__cause__ or error.__context__)
