"""The modes as Python functions: what they write, and one line for every mistake."""

import importlib.util
import inspect
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae_jax import commands, registry
from vqvae_jax.codec import compress as codec
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation.evaluate import Measured
from vqvae_jax.priors.ancestral import Options
from vqvae_jax.run import Run, load


@pytest.fixture(scope="module")
def trained(of_both_stages, tmp_path_factory):
    """The folder of a tiny run with a prior, of 32x32 pixels, trained by the command."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    commands.train(config=of_both_stages, workdir=folder)
    return folder


def write_noise(path: Path, height: int, width: int, mode: str = "RGB") -> np.ndarray:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(height).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def picture(path) -> np.ndarray:
    """A grid as it was before it was enlarged to twice its size."""
    return np.asarray(Image.open(path))[::2, ::2]


def test_tensorboard_is_named_where_it_is_installed_alone(of_both_stages, trained, capsys, monkeypatch):
    config = {**of_both_stages, "logging": {"tensorboard": True}}
    for installed in (True, False):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=installed: found or None)
        commands.train(config=config, workdir=trained)
        assert ("tensorboard --logdir" in capsys.readouterr().out) is installed


def test_a_split_other_than_test_gets_a_file_of_its_own(trained, capsys):
    before = (trained / "evaluation.json").read_text()
    result = commands.evaluate(workdir=trained, split="validation")
    assert result["split"] == "validation"
    assert (trained / "evaluation.json").read_text() == before
    assert (trained / "evaluation_validation.json").is_file()
    assert f"{trained}/evaluation_validation.json" in capsys.readouterr().out


def test_the_table_is_written_where_one_says_and_printed_where_none_can_be_written(trained, capsys, tmp_path):
    before = (trained / "evaluation.json").read_text()
    commands.evaluate(workdir=trained, output=tmp_path / "new" / "table.json")
    assert json.loads((tmp_path / "new" / "table.json").read_text()) == json.loads(before)
    assert (tmp_path / "new" / "figures" / "samples.png").is_file()
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "evaluation.json").unlink()
    (run / "evaluation.json").mkdir()  # which no file replaces, whoever tests this
    capsys.readouterr()
    result = commands.evaluate(workdir=run)
    out = capsys.readouterr().out
    assert f"{result['bits_per_dim']:.3f}" in out
    assert re.search(r"^not written: .*/evaluation.json .*: name a file elsewhere with --output$", out, re.MULTILINE)
    with pytest.raises(InputError, match=r"cannot write .*evaluation.json: .*; choose another --output"):
        commands.evaluate(workdir=run, output=run / "evaluation.json")
    other = commands.evaluate(workdir=run, step=3)
    assert other["prior"] == "unigram"
    assert json.loads((run / "evaluation_step_3.json").read_text())["prior"] == "unigram"


def test_the_table_has_what_other_codecs_need_for_the_same_images(trained, capsys, tmp_path):
    result = commands.evaluate(workdir=trained)
    source = registry.build_source(load(trained).meta["config"]["data"], "test")
    images = source.take(np.arange(result["num_images"]))["image"]
    for image, n in zip(images, range(len(images)), strict=True):
        Image.fromarray(image).save(tmp_path / f"{n}.png", optimize=True)
    expected = 8 * sum(path.stat().st_size for path in tmp_path.iterdir()) / images.size
    assert result["codecs"]["png"] == pytest.approx(expected)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"PNG, a file an image │ {expected:.3f}" in shown
    assert f"lossless WebP, a file an image │ {result['codecs']['webp']:.3f}" in shown


def test_data_of_other_classes_are_not_measured(trained):
    source = ArraySource("photos", "test", np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32), ("cat", "dog"))
    with pytest.raises(InputError, match="the classes of photos are not those of the run"):
        commands.report(load(trained), trained, source)


def test_extremes_are_images_that_differ(trained, tmp_path, monkeypatch):
    """Black images have the fewest bits: shown are others, and each once."""
    run = load(trained)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    images[[0, 3, 4]] = 0, 1, 200  # constant
    images[5] = images[2]
    source = ArraySource("tiny", "test", images, np.zeros(8, np.int32), ("one",))
    bits = np.arange(8.0)
    commands._save_extremes(
        run, tmp_path, source, Measured({"bits_per_dim": bits}, source.labels, np.zeros((0, 0)), np.arange(8)), ""
    )
    rows = np.split(picture(tmp_path / "extremes.png"), [34, 68, 102])
    for row, expected in ((rows[0], [1, 2, 6, 7]), (rows[2], [7, 6, 5, 1])):
        shown = [row[:32, 34 * n : 34 * n + 32] for n in range(4)]
        np.testing.assert_array_equal(shown, images[expected])
        assert row.shape[1] == 4 * 34 - 2
    np.testing.assert_array_equal(rows[1][:32, :32], run.reconstruct(images[1:2])[0])


def test_extremes_of_constant_images_are_not_drawn(trained, tmp_path):
    source = ArraySource("tiny", "test", np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32), ("one",))
    measured = Measured({"bits_per_dim": np.ones(2)}, source.labels, np.zeros((0, 0)), np.arange(2))
    commands._save_extremes(load(trained), tmp_path, source, measured, "")
    assert [path.name for path in tmp_path.iterdir()] == ["per_class.png"]


def test_the_split_is_reconstructed(trained, tmp_path):
    commands.reconstruct(workdir=trained, num=5, output=tmp_path / "five.png")
    run = load(trained)
    images = registry.build_source(run.meta["config"]["data"], "test").take(np.arange(5))["image"]
    shown = picture(tmp_path / "five.png")
    assert shown.shape == (2 * 34 - 2, 5 * 34 - 2, 3)
    np.testing.assert_array_equal(shown[:32, 34:66], images[1])
    np.testing.assert_array_equal(shown[34:, 34:66], run.reconstruct(images)[1])


def test_a_folder_of_images_of_any_size_is_reconstructed(trained, tmp_path):
    folder = tmp_path / "photos"
    odd = write_noise(folder / "a.png", 33, 35)
    small = write_noise(folder / "below" / "b.png", 5, 7)
    (folder / "notes.txt").write_text("not an image")
    path = commands.reconstruct(workdir=trained, input=[str(folder)], output=tmp_path / "pairs.png")
    shown = picture(path)
    assert shown.shape == (2 * 35 - 2, 2 * 37 - 2, 3)
    # By hand: 33x35 is repeated at its edges to 36x36, and cut back.
    padded = odd[np.minimum(np.arange(36), 32)][:, np.minimum(np.arange(36), 34)]
    np.testing.assert_array_equal(shown[:33, :35], odd)
    np.testing.assert_array_equal(shown[:33, 37:], load(trained).reconstruct(padded[None])[0, :33, :35])
    np.testing.assert_array_equal(shown[35:40, :7], small)
    assert np.all(shown[40:, :7] == 255)


def test_a_file_that_is_not_read_is_named_and_not_left_out(trained, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(bytes(30))
    with pytest.raises(InputError, match=r"cannot read .*b\.HEIC: its format is unknown"):
        commands.reconstruct(workdir=trained, input=[str(tmp_path)], output=tmp_path / "pairs.png")


def test_files_of_one_size_are_reconstructed_in_rows(trained, tmp_path):
    pixels = [write_noise(tmp_path / f"{n}.png", 36, 40) for n in range(2)]
    path = commands.reconstruct(workdir=trained, input=[str(tmp_path / "0.png"), str(tmp_path / "1.png")])
    assert path == trained / "figures" / "reconstructions.png"
    shown = picture(path)
    assert shown.shape == (2 * 38 - 2, 2 * 42 - 2, 3)
    np.testing.assert_array_equal(shown[:36, 42:], pixels[1])


def test_samples_are_written_as_a_grid_pictures_and_arrays(trained, tmp_path):
    grid = commands.sample(workdir=trained, num=20, temperature=0.8, top_k=3, seed=1, output=tmp_path / "new")
    expected = load(trained).sample(20, 1, options=Options(temperature=0.8, top_k=3))
    with np.load(tmp_path / "new" / "samples.npz") as file:
        np.testing.assert_array_equal(file["images"], expected)
    assert picture(grid).shape == (2 * 34 - 2, 16 * 34 - 2, 3)
    np.testing.assert_array_equal(picture(grid)[34:, 34:66], expected[17])
    pictures = sorted((tmp_path / "new").glob("0*.png"))
    np.testing.assert_array_equal([np.asarray(Image.open(path)) for path in pictures], expected)


def test_samples_are_means_or_draws_of_their_pixels(trained, tmp_path):
    commands.sample(workdir=trained, num=2, pixels="sample", output=tmp_path)
    expected = load(trained).sample(2, pixels="sample")
    assert (expected != load(trained).sample(2)).any()
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["images"], expected)
    with pytest.raises(InputError, match="unknown pixels 'means': did you mean 'mean'"):
        commands.sample(workdir=trained, pixels="means", output=tmp_path / "other")


def test_samples_are_never_mixed_with_others(trained, tmp_path):
    commands.sample(workdir=trained, num=5, output=tmp_path)
    mine = write_noise(tmp_path / "mine.png", 8, 8)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="holds samples: choose another --output, or replace them with --overwrite"):
        commands.sample(workdir=trained, num=2, output=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    commands.sample(workdir=trained, num=2, seed=1, output=tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0000.png",
        "0001.png",
        "grid.png",
        "mine.png",
        "samples.npz",
    ]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mine.png")), mine)


def test_pictures_that_are_no_samples_are_never_replaced(trained, tmp_path):
    write_noise(tmp_path / "0123.png", 8, 8)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"0123.png, which is no sample: choose another --output"):
            commands.sample(workdir=trained, num=2, output=tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["0123.png"]


def test_completions_keep_the_upper_part(trained, tmp_path):
    path = commands.complete(workdir=trained, num=3, keep=0.25, output=tmp_path / "c.png")
    originals, given, completed = np.split(picture(path)[:, :32], [34, 68])
    np.testing.assert_array_equal(given[:8], originals[:8])
    assert np.all(given[8:32] == 128)
    run = load(trained)
    expected = run.complete(originals[None, :32], 2)
    np.testing.assert_array_equal(completed, expected[0])


def test_files_are_completed_if_they_are_of_the_training_size(trained, tmp_path):
    pixels = write_noise(tmp_path / "a.png", 32, 32)
    write_noise(tmp_path / "b.png", 40, 36)
    path = commands.complete(workdir=trained, input=[str(tmp_path / "a.png")], output=tmp_path / "c.png")
    np.testing.assert_array_equal(picture(path)[:32], pixels)
    message = "images of 40x36 pixels: completions are of 32x32, the size this run was trained on"
    with pytest.raises(InputError, match=message):
        commands.complete(workdir=trained, input=[str(tmp_path)])


def test_wrong_inputs_are_one_line(trained, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    for name, message in (
        ("none.png", "cannot read .*none.png: No such file"),
        ("text.png", "cannot read .*text.png: its format is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            commands.reconstruct(workdir=trained, input=[str(tmp_path / name)])
    (tmp_path / "text.png").unlink()
    with pytest.raises(InputError, match="no images in .*: name folders or files with --input"):
        commands.reconstruct(workdir=trained, input=[str(tmp_path)])
    for keep in (0.0, 1.0):
        with pytest.raises(InputError, match=f"the share to keep is {keep}: it must be between 0 and 1"):
            commands.complete(workdir=trained, keep=keep)
    with pytest.raises(InputError, match="unknown class 'cofee': did you mean 'coffee'"):
        commands.sample(workdir=trained, class_=["cofee"])
    with pytest.raises(InputError, match="--class names one class for all completions, of a prior that knows classes"):
        commands.complete(workdir=trained, class_=["coffee"])
    with pytest.raises(InputError, match="one --class is for all images"):
        commands.compress(workdir=trained, input=[], output="x", class_=["coffee", "rocket"])
    with pytest.raises(InputError, match="needs one --input"):
        commands.decompress(workdir=trained, input=["a", "b"], output="x")


def test_a_class_is_named_or_numbered(trained):
    run = load(trained)
    assert commands.class_numbers(run, ["rocket", "0"]) == [3, 0]
    numbered = Run(run.model, run.variables, {"class_names": ["0", "1", "10", "2"]})
    assert commands.class_numbers(numbered, ["10", "2", "3"]) == [2, 3, 3]


def test_compress_hands_everything_on(trained, tmp_path, capsys, monkeypatch):
    called = {}

    def compress_to(run, inputs, path, **options):
        called.update(inputs=inputs, path=path, **options)
        left_out = [(Path("c.psd"), "its format isn't read")]
        return codec.Sizes(100, 80, labels=0, names=5, images=2, values=400, png=150, left_out=left_out)

    monkeypatch.setattr(codec, "compress_to", compress_to)
    commands.compress(workdir=trained, input=("a", "b"), output="x.vqz", class_=["1"], skip=True, verify=False)
    given = {"inputs": ["a", "b"], "path": "x.vqz", "label": 1, "skip": True, "verify": False}
    assert called == given | {"lossy": False, "search_label": False, "overwrite": False}
    out = capsys.readouterr().out
    assert "left out:    c.psd: its format isn't read" in out
    assert "stream 80, names 5, header 15" in out
    assert "1.6000 of the stream, 2.0000 in all, 3.0000 as PNG files" in out


def test_files_that_cannot_be_coded_are_named_with_what_to_do(trained, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.png").write_text("not an image")
    message = r"cannot code 1 of 1 images: .*text.png \(its format is unknown\): .*leave them out with --skip$"
    with pytest.raises(InputError, match=message):
        commands.compress(workdir=trained, input=[str(tmp_path / "in")], output=tmp_path / "x.vqz")
    with pytest.raises(InputError, match="--input$"):  # another mistake, which no flag mends
        commands.compress(workdir=trained, input=[str(tmp_path / "none")], output=tmp_path / "x.vqz", skip=True)


def test_every_argument_of_a_mode_is_named():
    for name in ("train", "evaluate", "reconstruct", "sample", "complete", "compress", "decompress"):
        parameters = inspect.signature(vars(commands)[name]).parameters.values()
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
