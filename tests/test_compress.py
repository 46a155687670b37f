"""Folders to files and back: every pixel, as many bytes as evaluation reports, and no harm from any file."""

import math
import os
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vqvae_jax import api, builders, compress, tiles
from vqvae_jax.codec import container
from vqvae_jax.codec.entropy import Decoder, Encoder
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.learned import Learned
from vqvae_jax.pictures import read_file

SHAPE = (8, 12, 3)


def make_run(config, prior="none", shape=SHAPE, seed=0, **changes):
    """A run that was never trained, whose codes and prior are far from uniform all the same."""
    config = {**config, "model": config["model"] | {"pixel_mean": (0.5,), "pixel_std": (0.25,)} | changes}
    model = builders.build_model(config["model"], shape)
    images = np.random.default_rng(seed).integers(0, 256, (64, *shape), dtype=np.uint8)
    variables = jax.jit(model.init)(jax.random.key(seed), images)
    source = ArraySource("noise", "train", images, np.zeros(64, np.int32), ("one", "two"))
    meta = {"config": config, "image_shape": list(shape), "class_names": ["one", "two"], "step": 0}
    run = api.Run(model, {**variables, "fitted": {}}, meta)
    run = api.Run(model, {**variables, "fitted": run.fit(source)}, meta)
    if prior == "none":
        return run
    section = config["prior"] | {"name": prior, "features": 32, "layers": 1, "conditional": prior == "conditional"}
    section["name"] = "pixelcnn" if prior == "conditional" else prior
    network = builders.build_prior(section, run.field, model.codebook_size, 2)
    batch = {"codes": np.zeros((1, *run.field), np.int32), "label": np.zeros(1, np.int32)}
    params = jax.jit(network.init)(jax.random.key(1), batch)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, moved)
    return run.with_prior(Learned(section["name"], network, {"params": params}, jnp.log(jnp.array([0.5, 0.5])), 8))


def pictures(folder: Path, channels=3) -> dict[str, np.ndarray]:
    """Save images of every kind in a folder; give them by the name that they come back under."""
    random = np.random.default_rng(3)
    found = {
        "noise.png": random.integers(0, 256, SHAPE, dtype=np.uint8),
        "sub/more noise.png": random.integers(0, 256, SHAPE, dtype=np.uint8),
        "constant.png": np.full((9, 25, 3), 255, np.uint8),
        "sub/deep/pixel.png": np.full((1, 1, 3), 7, np.uint8),
        "wide.png": random.integers(0, 256, (3, 40, 3), dtype=np.uint8),
        "exact.png": random.integers(100, 130, (16, 24, 3), dtype=np.uint8),
    }
    found = {name: image[..., :channels] for name, image in found.items()}
    for name, image in found.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image if channels == 3 else image[..., 0]).save(folder / name)
    return found


def read(folder: Path) -> dict[str, np.ndarray]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in paths}


def assert_same(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name, image in expected.items():
        np.testing.assert_array_equal(found[name].reshape(image.shape), image, err_msg=name)


@pytest.mark.parametrize("prior", ["none", "pixelcnn", pytest.param("transformer", marks=pytest.mark.slow)])
def test_all_pixels_come_back_under_their_names(config, tmp_path, prior):
    run = make_run(config, prior)
    expected = pictures(tmp_path / "in")
    data, sizes = compress.compress(run, [str(tmp_path / "in")])
    assert compress.decompress(run, data, tmp_path / "out") == len(expected)
    assert_same(read(tmp_path / "out"), expected)
    assert (sizes.total, sizes.images) == (len(data), len(expected))
    assert sizes.values == sum(image.size for image in expected.values())


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["softmax", "logistic_mixture", "gaussian_pixel"])
def test_other_likelihoods_and_gray_images_come_back_too(config, tmp_path, likelihood):
    channels = 1 if likelihood == "gaussian_pixel" else 3
    run = make_run(config, shape=(8, 12, channels), likelihood=likelihood)
    expected = pictures(tmp_path / "in", channels)
    data, _ = compress.compress(run, [str(tmp_path / "in")])
    compress.decompress(run, data, tmp_path / "out")
    assert_same(read(tmp_path / "out"), expected)


@pytest.mark.parametrize("prior", ["none", "pixelcnn"])
def test_the_stream_is_as_long_as_evaluation_says(config, tmp_path, prior):
    run = make_run(config, prior)
    images = np.random.default_rng(5).integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{n:02d}.png")
    _, sizes = compress.compress(run, [str(tmp_path)])
    reported = float(np.sum(run.bits_per_dim(images), dtype=np.float64)) * images[0].size / 8
    assert abs(sizes.stream - reported) < 0.005 * reported + 64
    assert sizes.total - sizes.names < 1.005 * reported + 64 + 6 * len(images)
    # The codes alone, which in the whole stream weigh little.
    _, sizes = compress.compress(run, [str(tmp_path)], lossy=True)
    rate = float(np.sum(run.measure(images)[f"rate/{run.prior}"], dtype=np.float64)) / math.log(2) / 8
    assert abs(sizes.stream - rate) < 0.005 * rate + 8
    assert abs(rate / (len(images) * np.prod(run.field) * math.log2(5) / 8) - 1) > 0.05  # not the uniform prior's


def test_a_lossy_file_has_the_codes_alone_and_gives_reconstructions(config, tmp_path):
    run = make_run(config, "pixelcnn")
    expected = pictures(tmp_path / "in")
    data, sizes = compress.compress(run, [str(tmp_path / "in")], lossy=True)
    compress.decompress(run, data, tmp_path / "out")
    found = read(tmp_path / "out")
    for name in ("noise.png", "sub/more noise.png"):
        np.testing.assert_array_equal(found[name], run.reconstruct(expected[name][None])[0])
    assert {name: image.shape for name, image in found.items()} == {n: i.shape for n, i in expected.items()}
    fields = 2 + 6 + 1 + 4 + 4  # tiles of noise, constant, pixel, wide, exact
    assert sizes.stream < fields * np.prod(run.field) * np.log2(5) / 8 * 1.5


@pytest.mark.slow
def test_a_label_is_fixed_or_searched_and_paid_for(config, tmp_path):
    run = make_run(config, "conditional")
    expected = pictures(tmp_path / "in")
    given = [str(tmp_path / "in")]
    made = {label: compress.compress(run, given, label=label)[0] for label in (0, 1)}
    searched, sizes = compress.compress(run, given, search_label=True)
    assert sizes.labels == 2 * len(expected)
    assert made[0] != made[1]
    for number, data in enumerate((made[0], made[1], searched)):
        compress.decompress(run, data, tmp_path / f"out{number}")
        assert_same(read(tmp_path / f"out{number}"), expected)
    codes = [run.encode(expected[name][None]) for name in ("noise.png", "sub/more noise.png")]
    costs = [[-float(run.learned.log_prob(c, np.array([y]))[0]) for y in (0, 1)] for c in codes]
    packed = container.unpack(searched)
    labels = dict(zip(packed.names, packed.labels, strict=True))
    assert [labels["noise.png"], labels["sub/more noise.png"]] == [int(np.argmin(cost)) for cost in costs]
    with pytest.raises(InputError, match="this run's prior knows classes: name one with --class"):
        compress.compress(run, given)
    with pytest.raises(InputError, match="leave out one"):
        compress.compress(run, given, label=1, search_label=True)
    with pytest.raises(InputError, match="knows no classes"):
        compress.compress(make_run(config), given, label=1)


@pytest.mark.slow
def test_what_stands_beside_an_image_changes_nothing_in_how_it_comes_back(config, tmp_path):
    run = make_run(config, "pixelcnn")
    expected = pictures(tmp_path / "in")
    alone, _ = compress.compress(run, [str(tmp_path / "in" / "noise.png")], lossy=True)
    together, _ = compress.compress(run, [str(tmp_path / "in")], lossy=True)
    compress.decompress(run, alone, tmp_path / "alone")
    compress.decompress(run, together, tmp_path / "together")
    np.testing.assert_array_equal(read(tmp_path / "alone")["noise.png"], read(tmp_path / "together")["noise.png"])
    assert len(expected) == len(read(tmp_path / "together"))


def save(array, path, **options):
    Image.fromarray(array).save(path, **options)
    return str(path)


def test_images_that_are_not_8_bit_gray_or_rgb_are_refused_by_name(config, tmp_path, monkeypatch):
    run = make_run(config)
    random = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    alpha = save(random, tmp_path / "alpha.png")
    deep = save(random[..., 0].astype(np.uint16) * 200, tmp_path / "deep.png")
    gray = save(random[..., 0], tmp_path / "gray.png")
    palette = tmp_path / "palette.png"
    Image.fromarray(random[..., :3]).quantize(4).save(palette)
    for path, mode in ((alpha, "RGBA"), (deep, "I;16"), (gray, "L"), (str(palette), "P")):
        with pytest.raises(InputError, match=f"{Path(path).name} has the mode {mode}, this model takes RGB"):
            compress.compress(run, [path])
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(range(24)))
    clear = save(random[..., :3], tmp_path / "clear.png", transparency=(1, 2, 3))
    Image.fromarray(random[..., :3]).save(
        tmp_path / "two.tiff", save_all=True, append_images=[Image.fromarray(random[..., 1:])]
    )
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be turned by 90 degrees
    Image.fromarray(random[..., :3]).save(tmp_path / "turned.jpg", exif=turned)
    for path, more in (
        (tmp_path / "deep.ppm", "levels that aren't of 8 bits"),
        (clear, "a transparent colour"),
        (tmp_path / "two.tiff", "more than one picture"),
        (tmp_path / "turned.jpg", "a rotation among its EXIF data"),
    ):
        with pytest.raises(InputError, match=f"{Path(path).name} has {more}, which would be lost"):
            compress.compress(run, [str(path)])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match="cannot read .*text.png: it is no image"):
        compress.compress(run, [str(tmp_path / "text.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in .*empty"):
        compress.compress(run, [str(tmp_path / "empty")])
    with pytest.raises(InputError, match="cannot read .*missing.png: No such file"):
        compress.compress(run, [str(tmp_path / "missing.png")])
    broken = Path(save(random[..., :3], tmp_path / "broken.png"))
    broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(InputError, match=r"cannot read .*broken.png"):
        compress.compress(run, [str(broken)])
    (tmp_path / "odd").mkdir()
    Path(save(random[..., :3], tmp_path / "odd" / "x.png")).rename(
        os.fsdecode(os.fsencode(tmp_path) + b"/odd/\xff.png")
    )
    with pytest.raises(InputError, match="can't be the name of an image"):
        compress.compress(run, [str(tmp_path / "odd")])
    fine = save(random[..., :3], tmp_path / "fine.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match="cannot read .*fine.png: Image size"):
        compress.compress(run, [fine])
    monkeypatch.undo()
    twice = [save(random[..., :3], tmp_path / name) for name in ("twice.png", "twice.bmp")]
    with pytest.raises(InputError, match="would both be twice.png: rename one"):
        compress.compress(run, twice)


@pytest.fixture
def compressed(config, tmp_path):
    """A run, what it compressed, and the pictures."""
    run = make_run(config)
    expected = pictures(tmp_path / "in")
    return run, compress.compress(run, [str(tmp_path / "in")])[0], expected


def test_existing_files_are_kept_unless_they_may_be_replaced(compressed, tmp_path):
    run, data, expected = compressed
    path = tmp_path / "there.vqz"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"there.vqz is there already: .*--overwrite"):
        compress.compress_to(run, [str(tmp_path / "in")], path)
    with pytest.raises(InputError, match="no images"):
        compress.compress_to(run, [], path, overwrite=True)
    assert path.read_bytes() == b"precious"
    compress.compress_to(run, [str(tmp_path / "in")], path, overwrite=True)
    assert path.read_bytes() == data
    out = tmp_path / "out"
    out.mkdir()
    (out / "noise.png").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"noise.png is there already"):
        compress.decompress(run, data, out)
    assert [path.name for path in out.iterdir()] == ["noise.png"]
    assert (out / "noise.png").read_bytes() == b"precious"
    compress.decompress(run, data, out, overwrite=True)
    assert_same(read(out), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "there.vqz"]


def test_places_that_cannot_be_read_or_written_are_one_line(compressed, tmp_path):
    run, data, _ = compressed
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        compress.decompress(run, data, tmp_path / "file" / "folder")
    with pytest.raises(InputError, match=r"file is a folder|in is a folder"):
        compress.compress_to(run, [str(tmp_path / "in")], tmp_path / "in", overwrite=True)
    with pytest.raises(InputError, match=r"cannot write .*choose another --output"):
        compress.compress_to(run, [str(tmp_path / "in")], tmp_path / "file" / "x.vqz")
    with pytest.raises(InputError, match=r"cannot read .*missing.vqz: No such file"):
        read_file(str(tmp_path / "missing.vqz"))


def test_a_file_of_another_run_or_another_machine_is_refused(config, compressed, tmp_path, monkeypatch):
    run, data, _ = compressed
    for other in (make_run(config, seed=1), make_run(config, "pixelcnn")):
        with pytest.raises(InputError, match="was made with another run: name that one with --workdir"):
            compress.decompress(other, data, tmp_path / "out")
    assert tiles.environment() == tiles.environment()
    monkeypatch.setattr(tiles.platform, "machine", lambda: "another")
    monkeypatch.setattr(compress, "environment", tiles.environment)
    with pytest.raises(InputError, match="compute otherwise in the last digits"):
        compress.decompress(run, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_codes_or_unfinished_is_refused(config, compressed):
    run, *_ = compressed
    unfinished = api.Run(run.model, run.variables | {"fitted": {}}, run.meta)
    with pytest.raises(InputError, match="isn't finished"):
        compress.compress(unfinished, [])
    vae = {k: v for k, v in config["model"].items() if not k.startswith(("code", "num_c", "emb", "comm", "ema", "rev"))}
    model = builders.build_model(vae | {"family": "vae", "latent_channels": 4}, SHAPE)
    with pytest.raises(InputError, match="the family vae has no codes"):
        compress.compress(api.Run(model, {}, run.meta | {"config": config | {"model": vae | {"family": "vae"}}}), [])


def test_a_short_stream_of_a_large_image_is_noticed_at_once(compressed, tmp_path):
    run, data, _ = compressed
    packed = container.unpack(data)
    large = packed._replace(names=["large.png"], sizes=[(8000, 8000, 1)], crcs=[0], stream=packed.stream[:400])
    with pytest.raises(InputError, match="this file is damaged: its stream"):
        compress.decompress(run, container.pack(large), tmp_path / "out")


@pytest.mark.slow
def test_forged_files_with_a_checksum_that_fits_do_no_harm(compressed, tmp_path):
    run, data, expected = compressed
    chance, damaged, out = random.Random(0), 0, tmp_path / "out"
    for _ in range(40):
        forged = bytearray(data[: -container.CHECKSUM])
        forged[chance.randrange(len(forged))] ^= 1 << chance.randrange(8)
        try:
            compress.decompress(run, bytes(forged) + container.checksum(bytes(forged)), out)
        except InputError:
            damaged += 1
        if out.exists():
            shutil.rmtree(out)
    assert damaged > 35
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    large = container.unpack(data)._replace(sizes=[(65535, 65535, len(expected))])
    with pytest.raises(InputError, match="larger than any"):
        compress.decompress(run, container.pack(large), out)
    strange = container.unpack(data)._replace(label=3)
    with pytest.raises(InputError, match="names a class"):
        compress.decompress(run, container.pack(strange), out)


@pytest.mark.parametrize("data", [b"", bytes(40), b"\xff" * 40])
def test_a_stream_gives_no_more_than_it_can_hold(data):
    decoder = Decoder(data)
    with pytest.raises(InputError, match="this file is damaged: its stream"):
        decoder.take(np.full((2000, 256), 1 / 256, np.float32))


@pytest.mark.parametrize("bits", [8, 21, 22, 23, 24, 30])
def test_a_stream_of_improbable_symbols_comes_back(bits):
    """What a symbol costs is known to less than the slack, also where frequencies are rounded up from almost nothing."""
    probabilities = np.full((20_000, 2), [1 - 2.0**-bits, 2.0**-bits], np.float32)
    encoder = Encoder()
    encoder.put(np.ones(20_000, np.int32), probabilities)
    assert Decoder(encoder.finish()).take(probabilities).all()


def test_names_as_long_as_they_may_be_come_back(config, tmp_path):
    run, name = make_run(config), "n" * (container.LONGEST_PART - 4) + ".png"
    expected = np.full(SHAPE, 7, np.uint8)
    (tmp_path / "in").mkdir()
    save(expected, tmp_path / "in" / name)
    data, _ = compress.compress(run, [str(tmp_path / "in")])
    compress.decompress(run, data, tmp_path / "out")
    assert_same(read(tmp_path / "out"), {name: expected})


def test_symbols_come_back_and_cost_what_their_probabilities_say():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(256, 0.1), 4000).astype(np.float32)
    symbols = np.array([random.choice(256, p=p / p.sum()) for p in probabilities.astype(np.float64)])
    encoder = Encoder()
    encoder.put(symbols[:1000], probabilities[:1000])
    encoder.put(symbols[:0], probabilities[:0])
    encoder.put(symbols[1000:], probabilities[1000:])
    data = encoder.finish()
    decoder = Decoder(data)
    np.testing.assert_array_equal(decoder.take(probabilities[:3]), symbols[:3])
    np.testing.assert_array_equal(decoder.take(probabilities[3:]), symbols[3:])
    chosen = np.maximum(probabilities[np.arange(4000), symbols], 2.0**-24)
    assert 8 * len(data) == pytest.approx(-np.log2(chosen).sum(), rel=2e-3, abs=64)
