"""The rooms of the house: imports point down, and nobody reaches into a library's private parts."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vqvae_jax"
LAYERS = [  # a module may import modules of earlier layers and, where it says so, of its own
    {"errors", "files"},
    {"codec.entropy", "codec.container"},
    {"models.quantizer", "models.likelihoods", "metrics"},
    {"data.prepare", "data.transforms", "models.networks", "checkpoint", "sharding", "metric_writer", "plots"},
    {"data.records"},
    {"data.statistics"},
    {"data.images"},
    {"pictures"},
    {"data.sources"},
    {"data.batches", "models.trunk", "priors.uniform", "priors.positionwise", "priors.pixelcnn", "priors.transformer"},
    {"priors.autoregressive"},
    {"priors.ancestral"},
    {"priors.unigram", "models.vqvae", "models.vae", "models.autoencoder", "models.importance"},
    {"models.categorical"},
    {"models.gumbel", "models.vimco"},
    {"builders"},
    {"train_step"},
    {"learned"},
    {"api"},
    {"evaluate", "sample", "tiles"},
    {"compress"},
    {"stages"},
    {"train"},
    {"main"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
ONE_OWNER = {
    "orbax": {"checkpoint"},
    "flax": {"models.networks", "priors.pixelcnn", "priors.transformer"},
    "tensorflow_datasets": {"data.prepare"},
}
ONE_OWNER |= {
    "grain": {"data.batches"},
    "ml_collections": {"main"},
    "absl": {"main"},
    "tensorboardX": {"metric_writer"},
}
ONE_OWNER |= {"matplotlib": {"plots"}, "dm_pix": {"metrics"}, "constriction": {"codec.entropy"}}


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
