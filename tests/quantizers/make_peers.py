"""Write peers.json: what vector-quantize-pytorch 1.32 computes, which test_peers.py compares with.

pip install torch vector-quantize-pytorch==1.32 && python tests/quantizers/make_peers.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from vector_quantize_pytorch import FSQ, LFQ, ResidualVQ, SimVQ, VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import kmeans, rotate_to

STEPS, VECTORS, DEPTH, CODES, STAGES = 20, 12, 4, 7, 3
LEVELS, BITS, INVERSE_TEMPERATURE, RATE = [8, 5, 4, 3], 4, 0.7, 0.1
EMA = {"decay": 0.8, "eps": 1e-5, "threshold_ema_dead_code": 0}


def draw(*shape, scale=1.0):
    return (scale * torch.randn(*shape)).requires_grad_()


def listed(tree):
    """Tensors to nested lists, floats with the digits that float32 has."""
    if isinstance(tree, dict):
        return {key: listed(value) for key, value in tree.items()}
    if isinstance(tree, torch.Tensor):
        return listed(tree.detach().tolist())
    if isinstance(tree, list):
        return [listed(value) for value in tree]
    return float(f"{tree:.9g}") if isinstance(tree, float) else tree


def gradients(z_q, upstream, loss, *at):
    """Gradients of <z_q, upstream> + loss."""
    return torch.autograd.grad((z_q * upstream).sum() + loss, at, retain_graph=True)


def vectors(**options):
    """A codebook by moving averages: the first step's values and gradients, then the state after all steps."""
    vq = VectorQuantize(DEPTH, CODES, **EMA, **options).train()
    batches, upstream = draw(STEPS, VECTORS, DEPTH), draw(VECTORS, DEPTH)
    first, book = vq.codebook.clone(), vq._codebook
    found = {"z_e": batches, "upstream": upstream, "codebook": first, "indices": [], "commitment": []}
    for n, z_e in enumerate(batches):
        z_q, indices, loss = vq(z_e[None])
        found["indices"].append(indices[0])
        found["commitment"].append(loss.sum())
        if n == 0:
            found |= {"z_q": z_q[0], "to_z_e": gradients(z_q[0], upstream, loss.sum(), batches)[0][0]}
    return found | {"count": book.cluster_size[0], "total": book.embed_avg[0], "last_codebook": vq.codebook}


def by_gradient(rotation):
    vq = VectorQuantize(
        DEPTH, CODES, learnable_codebook=True, ema_update=False, threshold_ema_dead_code=0, rotation_trick=rotation
    ).train()
    z_e, upstream = draw(VECTORS, DEPTH), draw(VECTORS, DEPTH)
    z_q, indices, loss = vq(z_e[None])
    to_z_e, to_codebook = gradients(z_q[0], upstream, loss.sum(), z_e, vq._codebook.embed)
    found = {"z_e": z_e, "upstream": upstream, "codebook": vq.codebook, "indices": indices[0], "z_q": z_q[0]}
    return found | {"loss": loss.sum(), "to_z_e": to_z_e, "to_codebook": to_codebook[0]}


def simvq(rotation):
    """The matrix after steps of gradient descent on the loss."""
    vq = SimVQ(DEPTH, CODES, rotation_trick=rotation).train()
    batches, upstream, matrix = draw(STEPS, VECTORS, DEPTH), draw(VECTORS, DEPTH), vq.code_transform.weight
    found = {"z_e": batches, "upstream": upstream, "frozen": vq.frozen_codebook, "map": matrix.T.clone()}
    found |= {"indices": [], "loss": []}
    for n, z_e in enumerate(batches):
        z_q, indices, loss = vq(z_e[None])
        found["indices"].append(indices[0])
        found["loss"].append(loss)
        if n == 0:
            found |= {"z_q": z_q[0], "to_z_e": gradients(z_q[0], upstream, loss, batches)[0][0]}
        (to_matrix,) = torch.autograd.grad(loss, matrix)
        matrix.data -= RATE * to_matrix
    return found | {"last_map": matrix.T}


def residual():
    vq = ResidualVQ(dim=DEPTH, num_quantizers=STAGES, codebook_size=CODES, rotation_trick=False, **EMA).train()
    batches = draw(STEPS, VECTORS, DEPTH)
    found = {"z_e": batches, "codebook": vq.codebooks.clone(), "indices": [], "commitment": []}
    for n, z_e in enumerate(batches):
        z_q, indices, losses = vq(z_e[None])
        found["indices"].append(indices[0])
        found["commitment"].append(losses.mean())
        if n == 0:  # through the loss alone: a gradient of z_q is added up over the stages there
            found |= {"z_q": z_q[0], "to_z_e": torch.autograd.grad(losses.mean(), batches, retain_graph=True)[0][0]}
    books = [layer._codebook for layer in vq.layers]
    found |= {"count": [book.cluster_size[0] for book in books], "total": [book.embed_avg[0] for book in books]}
    return found | {"last_codebook": vq.codebooks}


def finite_scalar():
    z_e, upstream = draw(40, len(LEVELS), scale=2.0), draw(40, len(LEVELS))
    z_q, indices = FSQ(LEVELS)(z_e[None])
    to_z_e = gradients(z_q[0], upstream, 0, z_e)[0]
    return {"levels": LEVELS, "z_e": z_e, "upstream": upstream, "indices": indices[0], "z_q": z_q[0], "to_z_e": to_z_e}


def lookup_free():
    lfq = LFQ(codebook_size=2**BITS, commitment_loss_weight=0.25, entropy_loss_weight=0.1, diversity_gamma=0.9).train()
    z_e, upstream = draw(VECTORS, BITS, scale=0.5), draw(VECTORS, BITS)
    ret, parts = lfq(z_e[None], inv_temperature=INVERSE_TEMPERATURE, return_loss_breakdown=True)
    to_z_e = gradients(ret.quantized[0], upstream, ret.entropy_aux_loss, z_e)[0]
    found = {"temperature": 1 / INVERSE_TEMPERATURE, "z_e": z_e, "upstream": upstream, "indices": ret.indices[0]}
    found |= {"z_q": ret.quantized[0], "to_z_e": to_z_e, "loss": ret.entropy_aux_loss, "commitment": parts.commitment}
    return found | {"sample_entropy": parts.per_sample_entropy, "batch_entropy": parts.batch_entropy}


def projected():
    vq = VectorQuantize(6, CODES, codebook_dim=DEPTH, rotation_trick=False, **EMA).train()
    for layer in (vq.project_in, vq.project_out):
        layer.bias.data.zero_()
    z_e, upstream, codebook = draw(VECTORS, 6), draw(VECTORS, 6), vq.codebook.clone()
    z_q, indices, loss = vq(z_e[None])
    at = z_e, vq.project_in.weight, vq.project_out.weight
    to_z_e, to_in, to_out = gradients(z_q[0], upstream, loss.sum(), *at)
    found = {"z_e": z_e, "upstream": upstream, "codebook": codebook, "indices": indices[0], "z_q": z_q[0]}
    found |= {"in": at[1].T, "out": at[2].T}
    return found | {"commitment": loss.sum(), "to_z_e": to_z_e, "to_in": to_in.T, "to_out": to_out.T}


def clusters():
    samples, means = draw(1, 40, 2), draw(1, CODES, 2, scale=0.5)
    found, _ = kmeans(samples, CODES, 10, sample_fn=lambda *_: means)
    return {"z_e": samples[0], "start": means[0], "means": found[0]}


def rotations():
    z_e, z_q, upstream = draw(VECTORS, 5), draw(VECTORS, 5), draw(VECTORS, 5)
    moved = rotate_to(z_e, z_q.detach())
    return {"z_e": z_e, "z_q": z_q, "upstream": upstream, "to_z_e": gradients(moved, upstream, 0, z_e)[0]}


if __name__ == "__main__":
    torch.manual_seed(0)
    peers = {
        "versions": {name: version(name) for name in ("torch", "vector-quantize-pytorch")},
        "ema": vectors(rotation_trick=False),
        "ema_rotation": vectors(rotation_trick=True),
        "cosine": vectors(rotation_trick=False, use_cosine_sim=True),
        "cosine_rotation": vectors(rotation_trick=True, use_cosine_sim=True),
        "gradient": by_gradient(rotation=False),
        "gradient_rotation": by_gradient(rotation=True),
        "simvq": simvq(rotation=False),
        "simvq_rotation": simvq(rotation=True),
        "residual": residual(),
        "finite_scalar": finite_scalar(),
        "lookup_free": lookup_free(),
        "projected": projected(),
        "kmeans": clusters(),
        "rotation": rotations(),
    }
    lines = ",\n".join(f'"{name}": {json.dumps(listed(values))}' for name, values in peers.items())
    (Path(__file__).parent / "peers.json").write_text(f"{{\n{lines}\n}}\n")
