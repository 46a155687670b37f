"""The peer of `our_step.py`: PyTorch's form of the same network. Needs torch and nothing else.

    PEERS/bin/python experiments/benchmarks/torch_step.py NETWORK LAYOUT DTYPE

NETWORK is an .npz file with the sizes of the network (sizes.json), its first parameters and the images. Prints a line
of JSON when it is ready, and answers each {"steps": n} with the seconds that each took.
"""

# pyright: reportMissingImports=false
import ast
import json
import math
import os
import sys
import time
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def read_npz(path: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read the sizes and the arrays, which are float32 or uint8 in C order."""
    arrays, sizes = {}, {}
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            data = file.read(name)
            length = int.from_bytes(data[8:10], "little")
            about = ast.literal_eval(data[10 : 10 + length].decode())
            dtype = {"<f4": torch.float32, "|u1": torch.uint8}[about["descr"]]
            array = torch.frombuffer(bytearray(data[10 + length :]), dtype=dtype).reshape(about["shape"])
            arrays[name.removesuffix(".npy")] = array
    sizes = json.loads(bytes(arrays.pop("sizes").tolist()))
    return sizes, arrays


class Residual(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x))))."""

    def __init__(self, hidden: int, units: int):
        super().__init__()
        self.conv3x3, self.conv1x1 = nn.Conv2d(hidden, units, 3, padding=1), nn.Conv2d(units, hidden, 1)

    def forward(self, x):
        return x + self.conv1x1(functional.relu(self.conv3x3(functional.relu(x))))


class Network(nn.Module):
    """A VQ-VAE with an EMA codebook, as one writes it in PyTorch; its forward pass gives the loss."""

    def __init__(self, sizes: dict, layout: torch.memory_format, dtype: torch.dtype):
        super().__init__()
        self.sizes, self.layout, self.dtype = sizes, layout, dtype
        h, down, dim = sizes["hidden"], sizes["downsamplings"], sizes["num_codebooks"] * sizes["embedding_dim"]

        def residual():
            return [Residual(h, sizes["residual_units"]) for _ in range(sizes["residual_blocks"])]

        encoder, decoder = [], [nn.Conv2d(dim, h, 3, padding=1), *residual()]
        for n in range(down):
            encoder += [nn.Conv2d(h if n else 3, h, 4, 2, 1)] + [nn.ReLU()] * (n + 1 < down)
            features = sizes["features"] if n + 1 == down else h
            decoder += [nn.ReLU(), nn.ConvTranspose2d(h, features, 4, 2, 1)]
        self.encoder = nn.Sequential(*encoder, *residual(), nn.ReLU(), nn.Conv2d(h, dim, 1))
        self.decoder = nn.Sequential(*decoder)
        for name in ("count", "total", "mean", "std"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def load(self, arrays: dict[str, torch.Tensor]) -> None:
        """Take the parameters of the network in JAX."""
        own = {}
        for part, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            blocks = [layer for layer in layers if isinstance(layer, Residual)]
            for n, block in enumerate(blocks):
                own |= {f"{part}/residual/{name}_{n}": getattr(block, name) for name in ("conv3x3", "conv1x1")}
            plain = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
            ends = {"encoder": -1, "decoder": 0}[part]
            own[f"{part}/{'out' if ends else 'in'}"] = plain.pop(ends)
            own |= {f"{part}/{'down' if ends else 'up'}_{n}": layer for n, layer in enumerate(plain)}
        for name, layer in own.items():
            order = (2, 3, 0, 1) if isinstance(layer, nn.ConvTranspose2d) else (3, 2, 0, 1)
            layer.weight.copy_(arrays[f"{name}/kernel"].permute(order))
            layer.bias.copy_(arrays[f"{name}/bias"])
        for name in ("count", "total"):
            setattr(self, name, arrays[name].to(layer.weight.device).clone())
        for name in ("mean", "std"):
            setattr(self, name, arrays[name].to(layer.weight.device).view(1, -1, 1, 1))

    def forward(self, x):
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            z_e = self.encoder((x.float() / 255 - self.mean) / self.std)
        vectors = z_e.float().permute(0, 2, 3, 1)
        vectors = vectors.reshape(-1, self.sizes["num_codebooks"], self.sizes["embedding_dim"])
        z_q = self.quantize(vectors.detach())
        commitment, z_q = functional.mse_loss(vectors, z_q), vectors + (z_q - vectors).detach()
        z_q = z_q.reshape(z_e.shape[0], *z_e.shape[2:], -1).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.decoder(z_q)
        distortion = getattr(self, self.sizes["likelihood"])(features.float(), x)
        # The codebook's own loss has no gradient: the codebook is a moving average.
        return distortion + self.sizes["commitment_cost"] * commitment + commitment.detach()

    @torch.no_grad()
    def quantize(self, vectors):
        """Replace each vector by the nearest code, and move the codebook."""
        groups, size, dim = self.total.shape
        n = self.count.sum(-1, keepdim=True)
        smoothed = (self.count + self.sizes["ema_epsilon"]) / (n + size * self.sizes["ema_epsilon"]) * n
        codebook = self.total / smoothed[..., None]
        of_group = vectors.transpose(0, 1)
        scores = (codebook**2).sum(-1)[:, None] - 2 * torch.bmm(of_group, codebook.transpose(1, 2))
        indices = (scores.argmin(-1) + size * torch.arange(groups, device=vectors.device)[:, None]).reshape(-1)
        keep, share = self.sizes["ema_decay"], 1 - self.sizes["ema_decay"]
        # Not torch.bincount, which torch.compile leaves out.
        self.count.mul_(keep).view(-1).index_add_(0, indices, torch.ones_like(vectors[..., 0]).view(-1), alpha=share)
        self.total.mul_(keep).view(-1, dim).index_add_(0, indices, of_group.reshape(-1, dim), alpha=share)
        return codebook.reshape(-1, dim)[indices].view(groups, -1, dim).transpose(0, 1)

    def logistic(self, features, x):
        """Mean negative log mass of [x - 1/2, x + 1/2] under a logistic, tails included."""
        mean, log_scale = features.chunk(2, 1)
        mean = 127.5 + 127.5 * mean
        inverse = torch.exp(-((log_scale - 2).clamp(-7, 7) + math.log(127.5)))
        centred = x.float() - mean
        below, above = (
            functional.logsigmoid((centred + 0.5) * inverse),
            functional.logsigmoid(-(centred - 0.5) * inverse),
        )
        inside = below + above + torch.log(-torch.expm1(-inverse))
        return -torch.where(x == 0, below, torch.where(x == 255, above, inside)).mean()

    def softmax(self, features, x):
        """Cross-entropy over 256 levels, by the axis on which they lie side by side."""
        if features.is_contiguous():
            batch, _, height, width = features.shape
            return functional.cross_entropy(
                features.view(-1, 256, height, width), x.long().view(3 * batch, height, width)
            )
        return functional.cross_entropy(
            features.permute(0, 2, 3, 1).reshape(-1, 256), x.permute(0, 2, 3, 1).reshape(-1).long()
        )


def make_step(path: str, layout: str, dtype: str, device: str = "cpu", compile_it: bool = False):
    """Build the training step, a function without arguments that gives the loss."""
    sizes, arrays = read_npz(path)
    network = Network(sizes, LAYOUTS[layout], getattr(torch, dtype)).to(device)
    network.load(arrays)
    network = network.to(memory_format=LAYOUTS[layout])
    optimizer = torch.optim.Adam(network.parameters(), sizes["learning_rate"], fused=True)
    images = arrays["images"].permute(0, 3, 1, 2).contiguous(memory_format=LAYOUTS[layout]).to(device)
    forward = torch.compile(network) if compile_it else network

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = forward(images)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def peak_mb() -> int | None:
    """Most memory that this process has had at a time, in MB; None where the system doesn't say."""
    if not (status := Path("/proc/self/status")).exists():
        return None
    return next(int(line.split()[1]) // 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def main():
    """Answer on standard output."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    path, layout, dtype = sys.argv[1:]
    step = make_step(path, layout, dtype)
    print(json.dumps({"losses": [float(step()) for _ in range(3)], "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(json.loads(line)["steps"]):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
        print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}), flush=True)


if __name__ == "__main__":
    main()
