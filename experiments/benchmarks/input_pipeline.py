"""Time 128x128 training crops from JPEG files: ours, torchvision's in a DataLoader, and the obvious Pillow loop.

    python -m venv PEERS && PEERS/bin/pip install -r experiments/benchmarks/requirements-peers.txt
    python -m experiments.benchmarks.input_pipeline --peer=PEERS/bin/python [--images=DIR] [--out=FILE]

One run, the same files, all kinds in turn, medians over rounds. `limit` is decoding, cropping and resizing files that
are in memory already, with nothing around it, in the best number of threads; `processes` is ours with data.num_workers.
Without --images, 300 JPEG files are made of photographs in scikit-image. The last line is one JSON object; exit status
1 below the goal of 1.2.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.benchmarks.processes import Process
from experiments.provenance import report
from vqvae_jax.data import batches, image_files, sources, transforms

GOAL, BATCH, SCALE = 1.2, 64, (0.2, 1.0)


def make_images(folder: Path, count: int = 300) -> None:
    """Cut JPEG files of ImageNet's usual size, 500x375 at quality 90, from photographs."""
    import skimage

    random, data = np.random.default_rng(0), Path(skimage.__file__).parent / "data"
    photographs = [
        Image.open(data / name).convert("RGB") for name in ("astronaut.png", "rocket.jpg", "motorcycle_left.png")
    ]
    for n in range(count):
        image = photographs[n % len(photographs)]
        box = transforms.random_box(*image.size, (0.5, 1.0), random.random(transforms.UNIFORMS))
        image.crop(box).resize((500, 375), Image.Resampling.BILINEAR).save(folder / f"{n:04d}.jpg", quality=90)


def our_source(folder: Path):
    """Open the folder as any folder of images."""
    options = {"channels": None, "crop_scale": SCALE, "eval_crop": "centre", "min_side": 1, "max_bad_images": 0}
    splits = [sources.folder(split, str(folder)) for split in sources.SPLITS]
    together = replace(splits[0], scan=np.concatenate([split.scan for split in splits]))
    return sources.prepare_split(together, image_size=128, **options)


def ours(source, threads: int, num_batches: int, workers: int = 0) -> float:
    """Images per second after the first batch."""
    steps = range(num_batches)
    made = batches.train_batches(source, BATCH, 0, False, steps, threads, stage="model", num_workers=workers)
    next(made)
    start = time.perf_counter()
    count = sum(len(batch["image"]) for batch in made)
    return count / (time.perf_counter() - start)


def pillow_loop(folder: Path, num_batches: int) -> float:
    """Open, convert, crop, resize, stack, in one thread: what one writes first."""
    paths, random = sorted(folder.glob("*.jpg")), np.random.default_rng(0)
    count, start = BATCH * (num_batches // 2), time.perf_counter()
    for first in range(0, count, BATCH):
        rows = []
        for n in range(first, first + BATCH):
            image = Image.open(paths[n % len(paths)]).convert("RGB")
            box = transforms.random_box(*image.size, SCALE, random.random(transforms.UNIFORMS))
            rows.append(np.asarray(image.crop(box).resize((128, 128), Image.Resampling.BILINEAR)))
        np.stack(rows)
    return count / (time.perf_counter() - start)


def limit(folder: Path, threads: int, num_batches: int) -> float:
    """Decode, crop and resize alone, from memory."""
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    uniforms = np.random.default_rng(0).random((BATCH * num_batches, transforms.UNIFORMS))

    def one(n: int):
        image = image_files.decode(files[n % len(files)], 3)
        transforms.crop_to(image, transforms.random_box(*image.size, SCALE, uniforms[n]), 128)

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(one, range(len(uniforms)), chunksize=BATCH))
        return len(uniforms) / (time.perf_counter() - start)


def torchvision(python: str, folder: Path, num_batches: int) -> Process:
    """Torchvision in its own environment, asked for one pass with so many workers."""
    program = Path(__file__).with_name("torchvision_loader.py")
    return Process([python, str(program), str(folder), str(BATCH), str(num_batches)])


def own_mb() -> int:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time training crops from JPEG files.")
    parser.add_argument("--peer", help="a Python with torch and torchvision; without it, they are left out")
    parser.add_argument("--images", type=Path, help="a folder of .jpg files")
    parser.add_argument("--data", default="300 JPEG files of 500x375, quality 90, cut from photographs in scikit-image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=48, help=f"of {BATCH} images, a pass")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 3, 4, 6])
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.images or Path(temporary)
        if not arguments.images:
            make_images(folder)
        source, num = our_source(folder), arguments.batches
        peer = torchvision(arguments.peer, folder, num) if arguments.peer else None
        times: dict[str, list[float]] = {}
        memory: dict[str, list[int]] = {}

        def add(name: str, value: float):
            times.setdefault(name, []).append(value)

        for _ in tqdm(range(arguments.rounds), desc="rounds"):
            add("pillow_loop", pillow_loop(folder, num))
            for workers in arguments.workers:
                before = own_mb()
                add(f"ours_{workers}", ours(source, workers, num))
                memory.setdefault(f"ours_{workers}_process_growth", []).append(own_mb() - before)
                with mock.patch.object(image_files, "simplejpeg", None):
                    add(f"without_simplejpeg_{workers}", ours(source, workers, num))
                if workers:
                    add(f"limit_{workers}", limit(folder, workers, num))
                    add(f"processes_{workers}", ours(source, 0, num, workers))
                if peer:
                    answer = peer.ask(workers=workers)
                    add(f"torchvision_{workers}", answer["images_per_second"])
                    memory[f"torchvision_{workers}_each_worker"] = answer["worker_mb"]
    median = {name: round(statistics.median(values), 1) for name, values in times.items()}
    best = {
        kind: max((v, k) for k, v in median.items() if k.startswith(kind))
        for kind in ("ours", "processes", "without_simplejpeg", "limit", "torchvision")
        if peer or kind != "torchvision"
    }
    cores = len(os.sched_getaffinity(0))
    result = {
        "benchmark": "input_pipeline",
        "speedup": round(best["ours"][0] / best["torchvision"][0], 2) if peer else None,
        "speedup_without_simplejpeg": round(best["without_simplejpeg"][0] / best["torchvision"][0], 2)
        if peer
        else None,
        "speedup_over_pillow_loop": round(best["ours"][0] / median["pillow_loop"], 2),
        "share_of_limit": round(best["ours"][0] / best["limit"][0], 3),
        "best": {kind: name for kind, (_, name) in best.items()},
        "images_per_second": median,
        "images_per_second_per_core": {kind: round(speed / cores, 1) for kind, (speed, _) in best.items()},
        "range": {name: [round(min(v), 1), round(max(v), 1)] for name, v in times.items()},
        "memory_mb": {
            name: values if "worker" in name and "torch" in name else max(values) for name, values in memory.items()
        },
        "simplejpeg": image_files.simplejpeg is not None,
        "data": arguments.data,
        "command": "python -m experiments.benchmarks.input_pipeline --peer=PEERS/bin/python",
        "rounds": arguments.rounds,
    }
    report(result, arguments.out)
    return 0 if not peer or result["speedup"] >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
