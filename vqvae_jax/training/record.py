"""The record of a run: JSON lines (complete, exact), TensorBoard (to look at), and one line on the terminal."""

import contextlib
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX.summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore - made by protobuf
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore - made by protobuf
from tqdm import tqdm

from vqvae_jax.data.image_files import replacing

RECORD = "metrics.jsonl"


@dataclass(frozen=True)
class LoggingOptions:
    """The config's section `logging`."""

    tensorboard: bool


def write_json(path: str | Path, content: dict | list) -> None:
    """Write a JSON file whole or not at all, in the first process alone; numbers that aren't finite become null."""
    if jax.process_index():
        return
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"
    with replacing(Path(path)) as file:
        file.write(text.encode())


def _finite(content: dict | list) -> Any:
    return json.loads(json.dumps(content), parse_constant=lambda _: None)


def read_record(workdir: str | Path) -> list[dict]:
    """Read the lines of `metrics.jsonl`; what was cut off or is damaged is left out."""
    path, found = Path(workdir) / RECORD, []
    for line in path.read_text(errors="replace").splitlines(keepends=True) if path.is_file() else ():
        with contextlib.suppress(ValueError):
            content = json.loads(line) if line.endswith("\n") else None
            found += [content] if isinstance(content, dict) and isinstance(content.get("step"), int) else []
    return found


class MetricWriter:
    """Writes scalars and images of one run; of several processes, only the first does."""

    def __init__(self, folder: Path, title: str, first_step: int, num_steps: int, *, tensorboard: bool):
        """Continue the record after `first_step`; the progress line begins with `title` and ends at `num_steps`."""
        self._events, active = None, jax.process_index() == 0
        self._path = folder / RECORD if active else Path(os.devnull)
        if active:
            folder.mkdir(exist_ok=True)
            # Lines of an earlier try after this step would stand twice.
            kept = [json.dumps(line) + "\n" for line in read_record(folder) if line["step"] <= first_step]
            with replacing(folder / RECORD) as file:
                file.write("".join(kept).encode())
        if active and tensorboard:
            (folder / "tensorboard").mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "tensorboard" / "events"))
            # Points of an earlier try from this step on are not shown.
            self._show(first_step + 1, session_log=SessionLog(status=SessionLog.START))
        layout = "{l_bar}{bar:20}| step {n_fmt}/{total_fmt} [{elapsed}, {remaining} left]{postfix}"
        every = 0.5 if sys.stderr.isatty() else 60.0  # seconds; a log file gets fewer lines
        often = {"mininterval": every, "maxinterval": max(every, 10.0), "dynamic_ncols": True, "disable": not active}
        self._bar = tqdm(total=num_steps, initial=first_step, desc=title, bar_format=layout, **often)

    def _show(self, step: int, **content) -> None:
        """Write to TensorBoard at once: the library's own queue and thread wait for ever on a full disk."""
        if self._events is not None:
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))
            self._events.flush()

    def scalars(self, step: int, values: dict[str, float | int]) -> None:
        """Record numbers of one step as one JSON line and as curves."""
        self._path.parent.mkdir(exist_ok=True)  # somebody may have deleted file or folder
        with open(self._path, "a") as file:
            file.write(json.dumps(_finite({"step": step, **values})) + "\n")
        self._show(step, summary=Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()]))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a picture uint8 [H,W,3] in TensorBoard."""
        self._show(step, summary=tensorboardX.summary.image(name, image, dataformats="HWC"))

    def progress(self, step: int, text: str | None = None) -> None:
        """Move the progress line to `step`, and change what stands at its end."""
        if text is not None:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Flush and close everything."""
        for part in (self._bar, self._events):
            if part is not None:
                part.close()


def most_memory() -> dict[str, int]:
    """Give the most memory that this program took so far, where the system tells it."""
    path = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", path.read_text()) if path.is_file() else None
    return {"most_memory_mb": int(found[1]) // 1024} if found else {}
