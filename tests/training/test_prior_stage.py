"""The second stage: it resumes to the bit, belongs to one image model, keeps its best, and counts in the bound."""

import json
import os
import shutil
import signal
from functools import partial

import jax
import numpy as np
import pytest

from vqvae_jax import __version__, commands, registry
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation import evaluate
from vqvae_jax.priors.ancestral import Options
from vqvae_jax.run import Run, load
from vqvae_jax.training import checkpoint, loop
from vqvae_jax.training.record import read_record


def changed(config, section, **values):
    return {**config, section: {**config[section], **values}}


@pytest.fixture(scope="module")
def trained(of_both_stages, tmp_path_factory):
    """Folder and run of both stages, without labels."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, loop.train(of_both_stages, folder)


@pytest.fixture
def model_alone(trained, tmp_path):
    """A copy of that run's first stage."""
    shutil.copytree(trained[0], tmp_path / "run", ignore=shutil.ignore_patterns("prior", "codes.npz"))
    return tmp_path / "run"


def prior_params(run):
    return jax.tree.leaves(jax.device_get(run.learned.variables["params"]))


def assert_same_prior(one, other):
    for a, b in zip(prior_params(one), prior_params(other), strict=True):
        np.testing.assert_array_equal(a, b)


def without_times(folder):
    times = ("images_per_second", "most_memory_mb", "unix_time")
    return [{k: v for k, v in line.items() if k not in times} for line in read_record(folder / "prior")]


@pytest.mark.slow
def test_the_second_stage_alone_equals_both_in_order(of_both_stages, trained, tmp_path):
    loop.train(changed(of_both_stages, "prior", name="none"), tmp_path / "run")
    assert load(tmp_path / "run").learned is None
    first = load(tmp_path / "run").fingerprint()
    run = loop.train(of_both_stages, tmp_path / "run")
    assert run.fingerprint() == first == trained[1].fingerprint()
    assert_same_prior(run, trained[1])


def test_a_stopped_prior_goes_on_to_the_same_bits(of_both_stages, trained, model_alone, monkeypatch):
    finish, calls = loop.Loop._finish, []

    def stop_at_three(self, step, *args):
        finish(self, step, *args)
        if step == 3 and not calls:
            calls.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Loop, "_finish", stop_at_three)
    with pytest.raises(loop.Stopped):
        loop.train(of_both_stages, model_alone)
    assert load(model_alone).learned is None  # not finished, so not in use
    assert load(model_alone).prior == "unigram"
    assert_same_prior(loop.train(of_both_stages, model_alone), trained[1])
    assert without_times(model_alone) == without_times(trained[0])


def test_a_finished_run_is_not_trained_again(of_both_stages, trained):
    before = (trained[0] / "prior" / "metrics.jsonl").read_bytes()
    assert_same_prior(loop.train(of_both_stages, trained[0]), trained[1])
    assert (trained[0] / "prior" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_codes_on_the_fly_equal_cached_ones_where_nothing_is_random(of_both_stages, tmp_path):
    plain = changed(of_both_stages, "data", flip=False)
    cached = loop.train(changed(plain, "prior", codes="cached"), tmp_path / "cached")
    fresh = loop.train(changed(plain, "prior", codes="fresh"), tmp_path / "fresh")
    assert (tmp_path / "cached" / "codes.npz").is_file()
    assert not (tmp_path / "fresh" / "codes.npz").exists()
    assert_same_prior(cached, fresh)


def test_the_cache_has_every_training_image_and_its_mirror_image(of_both_stages, trained):
    source = registry.build_source(of_both_stages["data"], "train")
    with np.load(trained[0] / "codes.npz") as file:
        codes, labels = file["codes"], file["labels"]
    assert len(codes) == len(labels) == 2 * len(source)
    number = min(len(source), 1024)
    images = source.images[:number]
    expected = np.concatenate([trained[1].encode(images), trained[1].encode(images[:, :, ::-1])])
    np.testing.assert_array_equal(codes[: 2 * number], expected)


def test_a_cache_of_other_codes_is_refused_and_half_of_one_too(of_both_stages, trained, model_alone, monkeypatch):
    path = model_alone / "codes.npz"
    with np.load(trained[0] / "codes.npz") as file:
        np.savez(path, codes=file["codes"], labels=file["labels"], about="another")
    with pytest.raises(InputError, match=r"has the codes of another model or other images: delete it"):
        loop.train(of_both_stages, model_alone)
    with np.load(trained[0] / "codes.npz") as file:
        parts = {name: file[name] for name in file.files}
    parts["codes"].flat[7] ^= 1
    np.savez(path, **parts)  # whose checksums are right
    with pytest.raises(InputError, match=r"codes.npz is damaged: delete it"):
        loop.train(of_both_stages, model_alone)
    path.write_bytes((trained[0] / "codes.npz").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"codes.npz is damaged: delete it"):
        loop.train(of_both_stages, model_alone)
    path.unlink()

    def fill_the_disk(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fill_the_disk)
        with pytest.raises(OSError, match="no space"):
            loop.train(of_both_stages, model_alone)
    assert not [path for path in model_alone.iterdir() if "codes" in path.name or path.suffix == ".tmp"]
    assert_same_prior(loop.train(of_both_stages, model_alone), trained[1])


@pytest.mark.slow
def test_a_prior_of_another_image_model_is_refused(of_both_stages, trained, tmp_path):
    other = tmp_path / "run"
    loop.train(changed(of_both_stages, "prior", name="none") | {"seed": 1}, other)
    shutil.copytree(trained[0] / "checkpoints" / "prior", other / "checkpoints" / "prior")
    with pytest.raises(
        InputError, match="is of another image model, that of step 3, not of the newest in .*: run the command"
    ):
        load(other)
    with pytest.raises(InputError, match="holds a run of another config: seed"):
        loop.train(of_both_stages | {"seed": 1}, other)
    # The same config, and an image model that was trained on.
    constant = changed(changed(of_both_stages, "optimizer", schedule="constant"), "train", checkpoint_every=1)
    loop.train(constant, tmp_path / "longer")
    longer = changed(constant, "train", num_steps=5)
    with pytest.raises(InputError, match=r"the prior in .* is of another image model: move .*checkpoints/prior away"):
        loop.train(longer, tmp_path / "longer")
    shutil.rmtree(tmp_path / "longer" / "checkpoints" / "prior")
    with pytest.raises(InputError, match=r"codes.npz has the codes of another model"):
        loop.train(longer, tmp_path / "longer")


def test_changes_of_the_prior_alone_are_named(of_both_stages, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    with pytest.raises(InputError, match=r"another config: prior.features \(4 there, 8 now\)"):
        loop.train(changed(of_both_stages, "prior", features=8), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["prior"]["features"] == 4


def test_what_decides_which_prior_is_best_must_not_change(of_both_stages, trained, model_alone):
    fewer = changed(of_both_stages, "eval", validation_images=7)
    with pytest.raises(InputError, match=r"another config: eval.validation_images \(64 there, 7 now\)"):
        loop.train(fewer, trained[0])
    with pytest.raises(InputError, match=r"another config: data.eval_crop \(centre there, random now\)"):
        loop.train(changed(of_both_stages, "data", eval_crop="random"), trained[0])
    assert loop.train(fewer, model_alone).learned is not None  # no prior was begun
    assert loop.train(changed(fewer, "eval", fit_images=5, test_images=3), model_alone).learned is not None


def test_a_run_of_another_version_is_refused_by_name(of_both_stages, trained, model_alone, monkeypatch):
    refused, now = r"made by vqvae_jax {}; this is {}: read it with a checkout of version {}", __version__
    monkeypatch.setattr(checkpoint, "__version__", "0.2.9")
    assert load(trained[0]).learned is not None
    monkeypatch.setattr(checkpoint, "__version__", "0.3.0")
    of_now = refused.format(now, "0.3.0", now)
    for read in (load, lambda folder: loop.train(changed(of_both_stages, "model", hidden=7), folder)):
        with pytest.raises(InputError, match=of_now):
            read(trained[0])
    monkeypatch.undo()
    shutil.copytree(trained[0] / "checkpoints" / "prior", model_alone / "checkpoints" / "prior")
    assert load(model_alone).learned is not None
    for name in ("prior", "model"):
        other = model_alone.with_name(name)
        shutil.copytree(model_alone, other)
        for path in other.glob(f"checkpoints/{name}/*/meta/metadata"):
            meta = json.loads(path.read_text())
            del meta["version"], meta["digest"], meta["digests"]
            path.write_text(json.dumps(meta))
        for read in (load, lambda folder: loop.train(of_both_stages, folder)):
            with pytest.raises(InputError, match=refused.format("0.1.0", now, "0.1.0")):
                read(other)


def test_a_run_of_before_some_options_is_read_and_gone_on_with(of_both_stages, trained, model_alone):
    paths = [*model_alone.glob("checkpoints/model/*/meta/metadata"), model_alone / "config.json"]
    for path in paths:
        meta = json.loads(path.read_text())
        config = meta.get("config", meta)
        meta = {key: value for key, value in meta.items() if key not in ("digest", "digests")}
        del config["data"]["num_workers"], config["model"]["dtype"], config["model"]["rematerialise"]
        path.write_text(json.dumps(meta))
    assert load(model_alone).meta["config"]["model"]["dtype"] == "float32"
    assert loop.train(of_both_stages, model_alone).fingerprint() == load(trained[0]).fingerprint()
    other = changed(of_both_stages, "model", dtype="bfloat16")
    with pytest.raises(InputError, match=r"model.dtype \(float32 there, bfloat16 now\)"):
        loop.train(other, model_alone)


@pytest.mark.slow
def test_the_best_of_the_validations_is_kept_and_patience_ends_training(of_both_stages, model_alone, monkeypatch):
    scores = {2: -3.0, 4: -1.0, 6: -2.0, 8: -2.5, 10: -0.5}
    monkeypatch.setattr(loop.PriorStage, "validate", lambda self, state, writer: scores[int(state.step)])
    config = changed(of_both_stages, "prior", num_steps=10, patience=2)
    loop.train(config, model_alone)
    assert checkpoint.newest(model_alone, checkpoint.PRIOR, "fitted").name == "4"
    assert max(line["step"] for line in read_record(model_alone / "prior")) == 8
    loop.train(config, model_alone)  # which changes nothing
    assert max(line["step"] for line in read_record(model_alone / "prior")) == 8
    assert checkpoint.newest(model_alone, checkpoint.PRIOR, "fitted").name == "4"


def test_the_headline_counts_the_learned_prior(of_both_stages, trained):
    _, run = trained
    source = registry.build_source(of_both_stages["data"], "test")
    result = evaluate.evaluate(run, source, 40)
    codes = run.encode(source.images[:40])
    prior = run.learned.prior
    nats = -np.mean(np.asarray(jax.jit(prior.log_prob)(run.learned.variables, codes), np.float64))
    expected = nats / (32 * 32 * 3 * np.log(2))
    assert result["prior"] == "pixelcnn"
    assert result["rate"] == pytest.approx(expected, rel=1e-5)
    assert result["bits_per_dim"] == pytest.approx(expected + result["distortion"], rel=1e-6)
    assert sorted(result["priors"]) == ["pixelcnn", "positionwise", "uniform", "unigram"]
    assert result["priors"]["pixelcnn"]["rate"] == result["rate"]
    per_image = run.bits_per_dim(source.images[:40])
    assert per_image.mean() == pytest.approx(result["bits_per_dim"], rel=1e-6)
    several = run.several_codes_bound(source.images[:4], 1) / (32 * 32 * 3 * np.log(2))
    np.testing.assert_allclose(several, per_image[:4], rtol=1e-5)


def test_validation_reports_bits_per_code_and_bits_per_dim(trained, of_both_stages):
    last = [line for line in read_record(trained[0] / "prior") if "eval/bits_per_code" in line][-1]
    codes = 8 * 8 * 2
    assert last["eval/rate"] == pytest.approx(last["eval/bits_per_code"] * codes / (32 * 32 * 3), rel=1e-6)
    assert last["eval_train/bits_per_code"] > 0
    assert last["eval/bits_per_code"] < np.log2(5) + 0.5


@pytest.fixture(scope="module")
def conditional_folder(tmp_path_factory):
    """Where that run lies."""
    return tmp_path_factory.mktemp("conditional") / "run"


@pytest.fixture(scope="module")
def conditional(of_both_stages, trained, conditional_folder):
    """A run whose prior knows classes."""
    folder = conditional_folder
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("prior"))
    config = changed(of_both_stages, "prior", conditional=True, num_steps=40, eval_every=20)
    return loop.train(config, folder)


def test_the_headline_of_a_conditional_prior_sums_over_classes(of_both_stages, conditional, conditional_folder):
    run, source = conditional, registry.build_source(of_both_stages["data"], "test")
    codes, labels = run.encode(source.images[:20]), source.labels[:20]
    log_prob = jax.jit(run.learned.prior.log_prob)
    given = np.stack([log_prob(run.learned.variables, codes, np.full(20, y, np.int32)) for y in range(5)])
    train_labels = registry.build_source(of_both_stages["data"], "train").labels
    frequencies = (np.bincount(train_labels, minlength=5) + 1) / (len(train_labels) + 5)
    biggest = given.max(0)
    marginal = np.log(frequencies @ np.exp(given.astype(np.float64) - biggest)) + biggest
    result = evaluate.evaluate(run, source, 20)
    scale = 32 * 32 * 3 * np.log(2)
    assert result["rate"] == pytest.approx(-marginal.mean() / scale, rel=1e-5)
    validation = registry.build_source(of_both_stages["data"], "validation")
    best = int(checkpoint.newest(conditional_folder, checkpoint.PRIOR, "fitted").name)
    logged = next(x for x in read_record(conditional_folder / "prior") if x["step"] == best and "eval/rate" in x)
    whole = evaluate.evaluate(run, validation, of_both_stages["eval"]["validation_images"])
    assert logged["eval/rate"] == pytest.approx(whole["rate"], rel=1e-5)
    assert logged["eval/rate_given_label"] == pytest.approx(whole["given_label"]["rate"], rel=1e-5)
    named = given[labels, np.arange(20)]
    assert result["given_label"]["rate"] == pytest.approx(-named.mean() / scale, rel=1e-5)
    assert result["given_label"]["rate"] != pytest.approx(result["rate"], rel=1e-6)


def test_classes_that_the_prior_does_not_know_have_no_probability(conditional):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for labels in ([0, 5], [-1, 0], [0]):
        with pytest.raises(InputError, match="labels must be 2 numbers of classes, 0 to 4"):
            conditional.measure(images, np.array(labels))


def test_samples_follow_seed_class_and_options_alone(conditional):
    labels = np.array([0, 1, 2, 3, 4], np.int32)
    images = conditional.sample(5, 3, labels)
    assert images.shape == (5, 32, 32, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, conditional.sample(5, 3, labels))
    assert np.any(images != conditional.sample(5, 4, labels))
    # A place's numbers are its own, whatever else is drawn.
    config = conditional.meta["config"]
    smaller = Run(conditional.model, conditional.variables, conditional.meta | {"config": config})
    pair = smaller.with_prior(conditional.learned.__class__(**{**vars(conditional.learned), "batch_size": 2}))
    np.testing.assert_array_equal(images, pair.sample(5, 3, labels))
    likely = conditional.learned.sample(
        np.zeros((5, *conditional.field), np.int32), labels=labels, options=Options(top_k=1)
    )
    again = conditional.learned.sample(
        np.zeros((5, *conditional.field), np.int32), seed=9, labels=labels, options=Options(top_k=1)
    )
    np.testing.assert_array_equal(likely, again)


def test_completions_keep_the_upper_codes(trained, of_both_stages):
    run = trained[1]
    images = registry.build_source(of_both_stages["data"], "test").images[:3]
    codes = run.encode(images)
    drawn = run.learned.sample(codes, keep=3 * 8 * 2, seed=1)
    np.testing.assert_array_equal(drawn[:, :3], codes[:, :3])
    assert np.any(drawn[:, 3:] != codes[:, 3:])
    np.testing.assert_array_equal(run.complete(images, 3, seed=1), run.decode(drawn))


def test_wrong_wishes_are_one_line(trained, conditional, of_both_stages, tmp_path):
    run = trained[1]
    for options, message in (
        (Options(temperature=0.0), "the temperature is 0.0: it must be above 0"),
        (Options(temperature=float("nan")), "the temperature is nan"),
        (Options(top_k=6), "top_k is 6: it must be 0 .all. to 5"),
        (Options(top_p=0.0), "top_p is 0.0"),
    ):
        with pytest.raises(InputError, match=message):
            run.sample(1, options=options)
    with pytest.raises(InputError, match="knows no classes"):
        run.sample(1, labels=np.zeros(1, np.int32))
    with pytest.raises(InputError, match="number of samples is 0"):
        run.sample(0)
    with pytest.raises(InputError, match="unknown class 'rockt': did you mean 'rocket'"):
        commands.class_numbers(conditional, ["rockt"])
    assert commands.class_numbers(conditional, ["rocket", "0"]) == [3, 0]
    numbered = Run(conditional.model, conditional.variables, {"class_names": ["0", "1", "10", "2"]})
    assert commands.class_numbers(numbered, ["10", "2", "3"]) == [2, 3, 3]
    for labels in (np.zeros(2, np.int32), np.array([5], np.int32), np.array([-1], np.int32)):
        with pytest.raises(InputError, match="labels must be 1 numbers of classes, 0 to 4"):
            conditional.sample(1, labels=labels)
    with pytest.raises(InputError, match="prior is of 8x8x2 codes an image, not 4x4x2"):
        run.complete(np.zeros((1, 16, 16, 3), np.uint8), 1)
    with pytest.raises(InputError, match="no learned prior"):
        run.with_prior(None).sample(1)
    build = partial(loop.train, workdir=tmp_path / "none")
    for section, message in (
        ({"name": "pixelcn"}, "unknown prior 'pixelcn': did you mean 'pixelcnn'"),
        ({"codes": "old"}, "unknown prior.codes 'old'"),
        ({"dropout": 1.0}, "prior.dropout is 1.0"),
        ({"name": "transformer", "features": 20}, "a transformer needs a multiple of 32"),
        ({"patience": -1}, "prior.patience is -1"),
    ):
        with pytest.raises(InputError, match=message):
            build(changed(of_both_stages, "prior", **section))
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="needs prior.label_dropout above 0"):
        registry.build_prior(of_both_stages["prior"] | {"conditional": True}, (2, 2, 1), (5,), 101)
    vae = {k: v for k, v in of_both_stages["model"].items() if k != "quantizer"}
    with pytest.raises(InputError, match="the family vae takes no learned prior: set prior.name=none"):
        build(of_both_stages | {"model": vae | {"family": "vae", "latent_channels": 4}})


@pytest.mark.slow
def test_random_crops_are_not_cached(of_both_stages, tmp_path):
    config = changed(changed(of_both_stages, "data", image_size=16), "prior", codes="cached")
    with pytest.raises(InputError, match=r"random crops differ every time.*prior.codes=fresh"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = loop.train(changed(config, "prior", codes="fresh"), tmp_path / "run")
    assert run.learned is not None
    assert json.loads((tmp_path / "run" / "config.json").read_text())["prior"]["codes"] == "fresh"
