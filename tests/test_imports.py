"""The layers of the package: imports point down, and nobody reaches into a library's private parts."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vqvae_jax"
LAYERS = [  # a module may import modules of earlier layers alone
    {"errors", "start", "models.winograd"},
    {"memory", "quantizers.interface", "likelihoods.interface", "likelihoods.discretised", "data.transforms"}
    | {"codec.container", "codec.entropy", "codec.environment", "evaluation.metrics"},
    {"quantizers.nearest", "quantizers.joint_index", "quantizers.projected"}
    | {"likelihoods.sampling", "likelihoods.pixelwise", "data.image_files"},
    {"quantizers.estimators", "quantizers.starts", "likelihoods.context", "data.prepare", "data.splits"},
    {"quantizers.ema", "quantizers.finite_scalar", "quantizers.lookup_free"},
    {"quantizers.vector"},
    {"quantizers.residual"},
    {"data.sources", "data.batches", "models.interface", "models.convolutions", "priors.interface"},
    {"models.networks", "priors.ancestral", "priors.counted", "priors.autoregressive", "priors.pixelcnn"}
    | {"priors.transformer"},
    {"models.trunk", "evaluation.bounds"},
    {"models.vqvae", "models.vae", "models.categorical", "models.autoencoder"},
    {"models.gumbel", "models.vimco"},
    {"registry"},
    {"evaluation.plots", "training.checkpoint", "training.lock", "training.sharding", "training.record"},
    {"training.step", "training.feed", "training.processes"},
    {"priors.trained"},
    {"run"},
    {"evaluation.evaluate", "evaluation.codebook", "codec.tiles"},
    {"evaluation.tables", "codec.compress"},
    {"training.image_stage", "training.prior_stage"},
    {"training.loop"},
    {"commands"},
    {"main"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
ONE_OWNER = {
    "orbax": {"training.checkpoint"},
    "flax": {"models.networks", "priors.pixelcnn", "priors.transformer"},
    "tensorflow_datasets": {"data.prepare"},
    "grain": {"data.batches"},
    "ml_collections": {"main"},
    "absl": {"main", "data.batches"},
    "tensorboardX": {"training.record"},
    "matplotlib": {"evaluation.plots"},
    "constriction": {"codec.entropy"},
}


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_layer():
    assert FILES.keys() == LEVEL.keys()


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_down(name):
    for imported in imports_of(FILES[name]):
        root, _, rest = imported.partition(".")
        assert root not in {"configs", "experiments", "tests"}
        if root == "vqvae_jax" and rest in LEVEL:
            assert LEVEL[rest] < LEVEL[name], f"{name} imports {rest}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_each_library_has_one_owner_and_no_private_part_is_used(name):
    for imported in imports_of(FILES[name]):
        root = imported.split(".")[0]
        if root in ONE_OWNER:
            assert name in ONE_OWNER[root], f"{name} imports {imported}"
        assert "_src" not in imported.split(".")
        assert not imported.startswith("jax.core")
    assert "pmap" not in FILES[name].read_text()
