"""The peer of `input_pipeline.py`: torchvision's v2 crops in a torch DataLoader. Needs an environment with torch.

Reads lines of JSON from its input, {"workers": n}, and answers each with images/s and the memory of its workers.
"""

import json
import sys
import time
from pathlib import Path

import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

folder, batch_size, num_batches = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


class Crops(Dataset):
    """Random 128x128 crops of the JPEG files in a folder, as uint8 tensors."""

    def __init__(self):
        self.paths = sorted(folder.glob("*.jpg"))
        crop = v2.RandomResizedCrop(128, scale=(0.2, 1.0), ratio=(1.0, 1.0), antialias=True)
        self.transform = v2.Compose([crop, v2.PILToTensor()])

    def __len__(self):
        return batch_size * num_batches

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index % len(self.paths)]).convert("RGB"))


def measure(workers: int) -> dict:
    """Images per second after the first batch, and the unshared memory of each worker in MB."""
    torch.set_num_threads(1)
    loader = iter(DataLoader(Crops(), batch_size, num_workers=workers, shuffle=True))
    next(loader)
    memory = [round(p.memory_full_info().uss / 2**20) for p in psutil.Process().children()]
    start = time.perf_counter()
    count = sum(len(batch) for batch in loader)
    return {"images_per_second": count / (time.perf_counter() - start), "worker_mb": memory}


for line in sys.stdin:
    print(json.dumps(measure(**json.loads(line))), flush=True)
