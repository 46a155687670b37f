"""The one exception that a user's mistake raises; `main` prints it as a single line."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user can put right: its message says what is wrong and what to do."""


def suggest(wrong: str, known: Iterable[str]) -> str:
    """Name the known word nearest to `wrong`, then all of them: the end of an error message."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names)}"
