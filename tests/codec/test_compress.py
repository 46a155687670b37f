"""Folders to files and back: every pixel under its name, and no harm from any file or place."""

import os
import random
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from untrained import SHAPE, assert_same, make_run, pictures, read, save

from vqvae_jax import registry
from vqvae_jax.codec import compress, container
from vqvae_jax.codec.entropy import Encoder
from vqvae_jax.codec.environment import environment
from vqvae_jax.data.image_files import read_file
from vqvae_jax.errors import InputError
from vqvae_jax.run import Run


@pytest.mark.parametrize(
    ("quantizer", "prior"),
    [
        ("vector_ema", "none"),
        pytest.param("vector_ema", "transformer", marks=pytest.mark.slow),
        ("vector_ema", "pixelcnn"),
        ("finite_scalar", "pixelcnn"),
        pytest.param("lookup_free", "pixelcnn", marks=pytest.mark.slow),
        pytest.param("residual", "pixelcnn", marks=pytest.mark.slow),
        pytest.param("vector_gradient", "pixelcnn", marks=pytest.mark.slow),
        pytest.param("vector_simvq", "pixelcnn", marks=pytest.mark.slow),
    ],
)
def test_all_pixels_come_back_under_their_names(config, tiny_quantizers, tmp_path, quantizer, prior):
    run = make_run(config, prior, quantizer=tiny_quantizers[quantizer])
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


def test_unusable_images_are_refused_together_or_left_out(config, tmp_path):
    run, random = make_run(config), np.random.default_rng(0).integers(0, 255, (8, 8, 4), dtype=np.uint8)
    save(random, tmp_path / "in" / "clear.png")
    save(random[..., 0].astype(np.uint16) * 200, tmp_path / "in" / "deep.png")
    save(random[..., :3], tmp_path / "in" / "fine.png")
    with pytest.raises(InputError, match=r"cannot code 2 of 3 images: .*clear.png .*deep.png "):
        compress.compress(run, [str(tmp_path / "in")])
    data, sizes = compress.compress(run, [str(tmp_path / "in")], skip=True)
    assert sorted(path.name for path, _ in sizes.left_out) == ["clear.png", "deep.png"]
    assert compress.decompress(run, data, tmp_path / "out") == sizes.images == 1
    assert_same(read(tmp_path / "out"), {"fine.png": random[..., :3]})


@pytest.fixture
def compressed(config, tmp_path):
    """A run, what it compressed, and the pictures."""
    run = make_run(config)
    expected = pictures(tmp_path / "in")
    return run, compress.compress(run, [str(tmp_path / "in")])[0], expected


def test_nothing_is_written_through_a_link_out_of_the_folder(compressed, tmp_path):
    run, data, expected = compressed
    below = next(Path(name) for name in expected if "/" in str(name))
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / below.parts[0]).symlink_to(tmp_path / "elsewhere")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="would lie outside of .*out, where a link leads: choose another --output"):
            compress.decompress(run, data, tmp_path / "out", overwrite=overwrite)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(list((tmp_path / "out").iterdir())) == 1
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")  # the folder itself may be one
    assert compress.decompress(run, data, tmp_path / "link") == len(expected)


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
    for strange in ({"label": 3}, {"labels": True}):
        with pytest.raises(InputError, match="names a class"):
            compress.decompress(run, container.pack(container.unpack(data)._replace(**strange)), out)


def test_names_as_long_as_they_may_be_come_back(config, tmp_path):
    run, name = make_run(config), "n" * (container.LONGEST_PART - 4) + ".png"
    expected = np.full(SHAPE, 7, np.uint8)
    (tmp_path / "in").mkdir()
    save(expected, tmp_path / "in" / name)
    data, _ = compress.compress(run, [str(tmp_path / "in")])
    compress.decompress(run, data, tmp_path / "out")
    assert_same(read(tmp_path / "out"), {name: expected})


def test_a_file_of_another_run_is_refused(config, compressed, tmp_path):
    _, data, _ = compressed
    for other in (make_run(config, seed=1), make_run(config, "pixelcnn")):
        with pytest.raises(InputError, match="was made with another run: name that one with --workdir"):
            compress.decompress(other, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_that_was_learned_or_counted_is_in_the_fingerprint(config):
    run = make_run(config, "conditional", likelihood="gaussian_channel")
    known = compress.fingerprint(run)
    assert compress.fingerprint(make_run(config, "conditional", likelihood="gaussian_channel")) == known

    def changed(tree, number):
        leaves, kind = jax.tree.flatten(tree)
        return jax.tree.unflatten(kind, [*leaves[:number], leaves[number] + 1, *leaves[number + 1 :]])

    of_model, of_prior = (len(jax.tree.leaves(tree)) for tree in (run.variables, run.learned.variables))
    found = {known}
    for n in range(of_model):
        found.add(compress.fingerprint(Run(run.model, changed(run.variables, n), run.meta, run.learned)))
    for n in range(of_prior):
        learned = run.learned.__class__(**{**vars(run.learned), "variables": changed(run.learned.variables, n)})
        found.add(compress.fingerprint(run.with_prior(learned)))
    assert len(found) == 1 + of_model + of_prior


def test_the_environment_names_what_decoding_depends_on():
    about = dict(line.split(" ", 1) for line in environment())
    assert about["jaxlib"] == jax.lib.__version__
    assert about["numpy"] == np.__version__
    assert about["device"] == f"{jax.device_count()} cpu"
    assert about["cores"] == str(len(os.sched_getaffinity(0)))
    assert {"vqvae_jax", "constriction", "processor", "instructions"} < about.keys()
    assert about["JAX_DISABLE_MOST_OPTIMIZATIONS"] == os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]  # of conftest


def test_what_differs_is_named_and_decoding_is_tried(compressed, tmp_path, capsys):
    run, data, expected = compressed
    packed = container.unpack(data)
    assert packed.environment == environment()
    compress.decompress(run, data, tmp_path / "same")
    assert "made elsewhere" not in capsys.readouterr().out
    kept = [line for line in packed.environment if not line.startswith(("jax ", "cores "))]
    other = packed._replace(environment=[*kept, "jax 0.1.2", "cores 64"])
    compress.decompress(run, container.pack(other), tmp_path / "out")
    assert_same(read(tmp_path / "out"), expected)
    differs = rf"\('cores \d+' here, 'cores 64' there, 'jax 0.1.2' there, 'jax {re.escape(jax.__version__)}' here\)"
    assert re.search(f"made elsewhere {differs}: trying", capsys.readouterr().out)
    broken = other._replace(crcs=[crc ^ 1 for crc in other.crcs])
    with pytest.raises(InputError, match=f"does not come back as it was.* made elsewhere {differs}: decode it there"):
        compress.decompress(run, container.pack(broken), tmp_path / "broken")


def test_a_lossy_file_opens_where_pixels_are_rounded_otherwise(config, tmp_path, monkeypatch, capsys):
    run = make_run(config)
    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    data, _ = compress.compress(run, [save(image, tmp_path / "a.png")], lossy=True)
    other = container.unpack(data)._replace(environment=["device 1 other"])
    expected, decode = run.reconstruct(image[None])[0] ^ 1, Run.decode
    monkeypatch.setattr(Run, "decode", lambda run, codes: decode(run, codes) ^ 1)
    compress.decompress(run, container.pack(other), tmp_path / "out")
    assert_same(read(tmp_path / "out"), {"a.png": expected})
    assert "made elsewhere" not in capsys.readouterr().out
    # Other codes are noticed all the same.
    damaged = other._replace(stream=bytes(byte ^ 255 for byte in other.stream))
    with pytest.raises(InputError, match="made elsewhere .*'device 1 cpu' here, 'device 1 other' there"):
        compress.decompress(run, container.pack(damaged), tmp_path / "noise")
    assert not (tmp_path / "noise").exists()


@pytest.mark.parametrize("lossy", [False, True])
def test_a_file_that_does_not_decode_is_not_written(config, tmp_path, monkeypatch, lossy):
    run, finish = make_run(config), Encoder.finish
    expected = pictures(tmp_path / "in")
    given, path = [str(tmp_path / "in")], tmp_path / "a.vqz"

    def wrong(encoder):
        data = bytearray(finish(encoder))
        data[len(data) // 2] ^= 1
        return bytes(data)

    monkeypatch.setattr(Encoder, "finish", wrong)
    with pytest.raises(InputError, match="nothing is written, for the file doesn't decode here") as caught:
        compress.compress_to(run, given, path, lossy=lossy)
    assert "\n" not in str(caught.value)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["in"]
    compress.compress_to(run, given, path, lossy=lossy, verify=False)
    with pytest.raises(InputError):
        compress.decompress(run, path.read_bytes(), tmp_path / "out")
    monkeypatch.undo()
    sizes = compress.compress_to(run, given, path, lossy=lossy, overwrite=True)
    assert sizes.total == path.stat().st_size
    assert compress.decompress(run, path.read_bytes(), tmp_path / "back") == len(expected)


def test_the_same_images_as_png_are_counted(config, tmp_path):
    random = np.random.default_rng(0).integers(0, 9, (20, 30, 3), dtype=np.uint8)
    own = Path(save(random, tmp_path / "own.png", compress_level=0)).stat().st_size
    bitmap = save(random, tmp_path / "other.bmp")
    best = Path(save(random, tmp_path / "best" / "other.png", optimize=True)).stat().st_size
    _, sizes = compress.compress(make_run(config), [str(tmp_path / "own.png"), bitmap], lossy=True)
    assert best < own
    assert sizes.png == own + best


def test_a_run_without_codes_or_unfinished_is_refused(config, compressed):
    run, *_ = compressed
    unfinished = Run(run.model, run.variables | {"fitted": {}}, run.meta)
    with pytest.raises(InputError, match="isn't finished"):
        compress.compress(unfinished, [])
    vae = {key: value for key, value in config["model"].items() if key != "quantizer"}
    vae |= {"family": "vae", "latent_channels": 4}
    meta = run.meta | {"config": config | {"model": vae}}
    with pytest.raises(InputError, match="the family vae has no codes"):
        compress.compress(Run(registry.build_model(vae, SHAPE), {}, meta), [])
