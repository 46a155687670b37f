"""The record of a run: JSON lines (complete, exact), TensorBoard (to look at), and one line on the terminal."""

import contextlib
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import tensorboardX.summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore - made by protobuf
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore - made by protobuf
from tqdm import tqdm

from vqvae_jax.files import replacing

RECORD = "metrics.jsonl"


def write_json(path: str | Path, content: dict) -> None:
    """Write a JSON file whole or not at all; numbers that aren't finite become null."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"
    with replacing(Path(path)) as file:
        file.write(text.encode())


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(workdir: str | Path) -> list[dict]:
    """Read the lines of `metrics.jsonl`; a last line that was cut off in the middle is left out."""
    path = Path(workdir) / RECORD
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_record(workdir: str | Path, step: int) -> None:
    """Drop the lines after `step`, so that a resumed run writes none twice."""
    kept = [line for line in read_record(workdir) if line["step"] <= step]
    with replacing(Path(workdir) / RECORD) as file:
        file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


class _Board:
    """TensorBoard's event file, written at once: a queue and its thread would wait for ever on a full disk."""

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        # Points of an earlier try from this step on are not shown.
        self.write(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, **content) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class MetricWriter:
    """Writes scalars and images of one run; of several processes, only the first one does."""

    def __init__(
        self,
        workdir: str | Path,
        first_step: int,
        num_steps: int,
        *,
        tensorboard: bool,
        active: bool = True,
        title: str = "train",
    ):
        """Continue the record at `first_step`; `num_steps` is where the progress line ends, `title` how it begins."""
        self._file = self._board = self._bar = None
        if not active:
            return
        cut_record(workdir, first_step)
        self._file = open(Path(workdir) / RECORD, "a", buffering=1)  # noqa: SIM115 - open as long as the run
        if tensorboard:
            self._board = _Board(Path(workdir) / "tensorboard", first_step)
        layout = "{l_bar}{bar:20}| step {n_fmt}/{total_fmt} [{elapsed}, {remaining} left]{postfix}"
        self._bar = tqdm(
            total=num_steps, initial=first_step, bar_format=layout, desc=title, mininterval=0.5, dynamic_ncols=True
        )

    def scalars(self, step: int, values: dict[str, float | int]) -> None:
        """Record numbers of one step as one JSON line and as curves."""
        if self._file is None:
            return
        self._file.write(json.dumps(_finite({"step": step, **values})) + "\n")
        if self._board is not None:
            points = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
            self._board.write(step, summary=Summary(value=points))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a picture uint8 [H,W,3] in TensorBoard."""
        if self._board is not None:
            self._board.write(step, summary=tensorboardX.summary.image(name, image, dataformats="HWC"))

    def progress(self, step: int, text: str | None = None) -> None:
        """Move the progress line to `step`, and change what stands at its end."""
        if self._bar is not None:
            if text is not None:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Flush and close everything."""
        for part in (self._bar, self._file, self._board):
            if part is not None:
                part.close()


class Clock:
    """Counts training time alone, for images/s; starts after the first step, which compiles."""

    def __init__(self, batch_size: int):
        self._batch_size, self._steps, self._start = batch_size, -1, time.perf_counter()

    def step(self) -> None:
        """Count a step."""
        self._steps += 1
        if self._steps == 0:
            self._start = time.perf_counter()

    @contextlib.contextmanager
    def paused(self):
        """Leave out the time of what is done in between."""
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin

    def images_per_second(self) -> float:
        """Give the speed since it was last asked for."""
        now = time.perf_counter()
        speed = self._steps * self._batch_size / max(now - self._start, 1e-9)
        self._steps, self._start = 0, now
        return speed

    def times(self, speed: float) -> dict[str, float | int]:
        """Give what is recorded of times and memory."""
        times = {"images_per_second": round(speed, 1)} if speed else {}
        return times | most_memory() | {"unix_time": round(time.time(), 3)}


def most_memory() -> dict[str, int]:
    """Give the most memory that this program took so far, where the system tells it."""
    path = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", path.read_text()) if path.is_file() else None
    return {"most_memory_mb": int(found[1]) // 1024} if found else {}
