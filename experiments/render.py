"""Write measured numbers into the pages: `python -m experiments.render`, after a file in experiments/results changed.

Each template experiments/templates/NAME.md gives the block between the markers of README.md or docs/NAME.md. In it,
`{FILE.json:key.key:format}` stands for a number below experiments/results (a float with three decimals unless a format
is given; a dash where there is none); a key of a list is a number, or `[key=value,key=value]` for the entry that has
these. A line `%each A|B: 1|2; 3|4` repeats the line after it, with 1 and then 3 for A, and 2 and then 4 for B, and
`%rows A: FILE.json[key=value]` repeats it for all entries of a list that have these: `{A.key}` is a number of each.
"""

import json
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
TEMPLATES = sorted((ROOT / "experiments" / "templates").glob("*.md"))
START, END = "<!-- results:start -->", "<!-- results:end -->"
FIELD = re.compile(r"\{([^{}:]+\.json):([^{}:]+)(?::([^{}]+))?\}")


def page_of(template: Path) -> Path:
    """The page that a template is for."""
    return ROOT / template.name if template.name == "README.md" else ROOT / "docs" / template.name


@cache
def _result(name: str):
    return json.loads((RESULTS / name).read_text())


def value(name: str, keys: str, style: str | None) -> str:
    """Look a number up in a result file and format it; a KeyError if there is no such key."""
    found = _result(name)
    for key in re.findall(r"\[[^]]*\]|[^.[\]]+", keys):
        found = entry(found, key) if isinstance(found, list) else found[key]
    if found is None:
        return "–"
    default = {float: ".3f", int: ","}.get(type(found), "")
    return format(found, style or default)


def entry(rows: list, key: str):
    """Give the entry of a number, or the only one with the values of `[key=value,key=value]`; else a KeyError."""
    if not key.startswith("["):
        return rows[int(key)]
    found = entries(rows, key[1:-1])
    if len(found) != 1:
        raise KeyError(f"{len(found)} entries have {key}")
    return rows[found[0]]


def entries(rows: list, condition: str) -> list[int]:
    """Give the numbers of the entries with the values of `key=value,key=value`; all where that is empty."""
    wanted = dict(pair.split("=") for pair in condition.split(",") if pair)
    return [n for n, row in enumerate(rows) if all(str(row[name]) == value for name, value in wanted.items())]


def fill(template: str) -> str:
    """Expand the repeated lines of a template, then its fields."""
    lines, names, rows = [], [], [()]
    for line in template.splitlines():
        if line.startswith("%each "):
            head, _, tail = line.removeprefix("%each ").partition(": ")
            names, rows = head.split("|"), [row.split("|") for row in tail.split("; ")]
            continue
        if line.startswith("%rows "):
            name, _, where = line.removeprefix("%rows ").partition(": ")
            file, _, condition = where.rstrip("]").partition("[")
            names, rows = [name], [[f"{file}:{n}"] for n in entries(_result(file), condition)]
            continue
        for row in rows:
            repeated = line
            for name, text in zip(names, row, strict=True):
                repeated = repeated.replace(name, text)
            lines.append(FIELD.sub(lambda field: value(*field.groups()), repeated))
        names, rows = [], [()]
    return "\n".join(lines)


def render(page: str, template: str) -> str:
    """Give a page with its marked block made anew."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"a page needs {START} and {END}")
    return f"{before}{start}\n\n{fill(template)}\n\n{end}{after}"


def main():
    """Render every page that has a template."""
    for template in TEMPLATES:
        page = page_of(template)
        page.write_text(render(page.read_text(), template.read_text()))
        print(f"rendered {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
