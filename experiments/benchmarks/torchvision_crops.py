"""Store what torchvision makes of photographs in scikit-image, for the tests of our crops to compare with.

pip install -r experiments/benchmarks/requirements-peers.txt     (an environment of its own)
python experiments/benchmarks/torchvision_crops.py --out=tests/torchvision_crops.json
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import skimage
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

FILES = ("rocket.jpg", "coffee.png", "chelsea.png", "astronaut.png", "motorcycle_left.png")
SIZES = (128, 32)


def digest(image: Image.Image) -> str:
    """Digest the pixels."""
    return hashlib.blake2b(np.asarray(image).tobytes(), digest_size=16).hexdigest()


def main():
    """Two random crops and two centre crops of every photograph."""
    parser = argparse.ArgumentParser(description="Store torchvision's crops.")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    result = {"torchvision": torchvision.__version__, "torch": torch.__version__, "resized_crop": [], "centre": []}
    for name in FILES:
        image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        for size in SIZES:
            transform = v2.RandomResizedCrop(size, scale=(0.2, 1.0), ratio=(1.0, 1.0), antialias=True)
            box = transform.make_params([image])
            top, left, height, width = (box[key] for key in ("top", "left", "height", "width"))
            assert height == width
            crop = v2.functional.resized_crop(image, top, left, height, width, [size, size], antialias=True)
            row = {"file": name, "left": left, "top": top, "side": width, "size": size, "digest": digest(crop)}
            result["resized_crop"].append(row)
            centre = v2.CenterCrop(size)(v2.Resize(size, antialias=True)(image))
            result["centre"].append({"file": name, "size": size, "digest": digest(centre)})
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
