"""The command as a user runs it: what it prints, what it writes, and one line for every mistake."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vqvae_jax
from configs import quickstart
from vqvae_jax import commands, main, start
from vqvae_jax.errors import InputError

ROOT = Path(__file__).parent.parent
QUICK = f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke"
TINY = ["--config.model.hidden=4", "--config.model.residual_units=4", "--config.train.num_steps=2"]


def command(*arguments, cwd):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "vqvae_jax.main", *arguments]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def parse(*arguments):
    return main.parse(["vqvae", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo_dir):
    """A folder in which one tiny run was trained by the command, and what the command said."""
    folder = tmp_path_factory.mktemp("user")
    done = command(QUICK, *TINY, f"--data_dir={photo_dir}", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def test_training_writes_and_names_everything(folder):
    out = (folder / "stdout").read_text()
    run = folder / "runs" / "quickstart-smoke"
    for name in ("evaluation.json", "metrics.jsonl", "checkpoints/model/2"):
        assert f"runs/quickstart-smoke/{name}" in out
        assert (run / name).exists()
    figures = ["codebook.png", "curves.png", "extremes.png", "per_class.png", "prior_curves.png"]
    figures += ["reconstructions.png", "samples.png"]
    assert f"runs/quickstart-smoke/figures/: {', '.join(figures)}" in out
    assert sorted(path.name for path in (run / "figures").iterdir()) == figures
    assert (run / "config.json").exists()
    assert any((run / "tensorboard").iterdir())
    assert re.search(r"codes:       \d+ of 512 in use, perplexity [\d.]+ of 128; from a code to its nearest", out)
    result = json.loads((run / "evaluation.json").read_text())
    assert result["bits_per_dim"] == pytest.approx(result["rate"] + result["distortion"])
    assert f"{result['bits_per_dim']:.3f}" in out
    assert f"{result['codecs']['png']:.3f}" in out
    assert f"{result['codecs']['webp']:.3f}" in out
    assert (result["dataset"], result["split"], result["step"]) == ("photos", "test", 2)


def test_training_is_quiet_but_for_its_progress(folder):
    for line in (folder / "stderr").read_text().replace("\r", "\n").splitlines():
        assert not line.strip() or line.startswith(("train ", "codes of the training images")), line
    assert "images/s" in (folder / "stderr").read_text()
    assert "bits/dim" in (folder / "stderr").read_text()


def test_the_same_command_again_goes_straight_to_the_table(folder, photo_dir):
    before = (folder / "runs/quickstart-smoke/metrics.jsonl").read_text()
    done = command(QUICK, *TINY, f"--data_dir={photo_dir}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "model: finished at step 2 already" in done.stdout
    assert "prior: finished at step 10 already" in done.stdout
    assert (folder / "runs/quickstart-smoke/metrics.jsonl").read_text() == before


def test_evaluate_needs_the_run_alone_and_agrees(folder):
    run = folder / "runs" / "quickstart-smoke"
    before = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    done = command("--mode=evaluate", f"--workdir={run}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "evaluation.json").read_text()) == before
    assert f"table:       {run}/evaluation.json" in done.stdout


def test_help_lists_every_mode_with_its_flags_and_the_configs():
    done = command("--help", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    sections = dict(re.findall(r"^--mode=(\w+): .+\n((?:  --.+\n)+)", done.stdout, re.MULTILINE))
    flags = {mode: re.findall(r"^  --(\w+)", text, re.MULTILINE) for mode, text in sections.items()}
    assert list(flags) == ["train", "evaluate", "reconstruct", "sample", "complete", "compress", "decompress"]
    of_processes = ["coordinator", "num_processes", "process_id"]
    assert flags["train"] == ["config", "workdir", "data_dir", "resume", *of_processes]
    assert flags["evaluate"][-3:] == of_processes
    assert flags["decompress"] == ["workdir", "step", "input", "output", "overwrite"]
    assert {"temperature", "top_k", "top_p", "seed", "class", "overwrite"} < set(flags["sample"])
    assert re.search(r"--keep=SHARE .+ \[0\.5\]", sections["complete"])
    assert re.search(r"--top_k=K .+ \[0\]", sections["sample"])
    assert "--config.KEY=VALUE" in done.stdout
    assert "\n--nohuge_pages, in every mode: " in done.stdout
    assert re.search(r"configs/quickstart.py +:smoke\n +A small VQ-VAE", done.stdout)
    assert "alsologtostderr" not in done.stdout


def test_where_there_are_no_configs_help_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "__file__", str(tmp_path / "site-packages" / "vqvae_jax" / "main.py"))
    assert list(main.help_lines())[-1] == "\nconfigs: in the folder configs/ of the project's source"
    with pytest.raises(
        InputError, match="no config file configs/none.py: the configs are in the folder configs/ of the"
    ):
        parse("--config=configs/none.py")


def test_every_flag_is_explained_once_and_every_explanation_has_a_flag():
    assert set.union(*({*main._takes(mode)} for mode in main.MODES)) == main.OPTIONS.keys() - {"mode"}


def test_a_command_line_becomes_keyword_arguments():
    function, given = parse("--mode=sample", "--workdir=RUN", "--class=a", "--class=b", "--num=3", "--overwrite")
    assert function is commands.sample
    assert given == {"workdir": "RUN", "class_": ["a", "b"], "num": 3, "overwrite": True}
    function, given = parse("--mode=compress", "--workdir=RUN", "--input=a", "--output=b", "--skip", "--noverify")
    assert function is commands.compress
    assert given == {"workdir": "RUN", "input": ["a"], "output": "b", "skip": True, "verify": False}


def test_the_config_is_changed_by_what_the_command_line_says_of_it():
    overrides = ["--config.model.hidden", "4", "--config.data.crop_scale=(0.5, 1.0)", "--noconfig.logging.tensorboard"]
    function, given = parse(QUICK, *overrides, "--resume=never")
    expected = quickstart.get_config("smoke").to_dict()
    expected["model"]["hidden"] = 4
    expected["data"]["crop_scale"] = (0.5, 1.0)
    expected["logging"]["tensorboard"] = False
    assert function is commands.train
    assert given == {"config": expected, "resume": "never", "workdir": "runs/quickstart-smoke"}


def test_a_config_names_its_run_for_the_other_modes():
    assert parse("--mode=evaluate", QUICK) == (commands.evaluate, {"workdir": "runs/quickstart-smoke"})


def test_a_config_imports_its_neighbours_wherever_the_command_is_run(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "first.py").write_text("import ml_collections\nget_config = ml_collections.ConfigDict\n")
    (tmp_path / "mine" / "second.py").write_text("from mine.first import get_config\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert parse(f"--config={tmp_path}/mine/second.py")[1] == {"config": {}, "workdir": "runs/second"}


MISTAKES = [
    ([], "--mode=train needs --config=FILE.py[:VARIANT]: e.g. configs/quickstart.py"),
    (
        [QUICK, "--config.model.hiden=4"],
        "unknown option model.hiden: did you mean 'model.hidden'? known: model.context, model.downsamplings",
    ),
    (
        [QUICK, "--config.modle.hidden=4"],
        "unknown option modle.hidden: did you mean 'model'? known: data, eval, logging",
    ),
    ([QUICK, "--config.zzz=4"], "unknown option zzz: known: data, eval, logging, model, optimizer, prior, seed, train"),
    ([QUICK, "--config.model.hidden.x=4"], "unknown option model.hidden.x: did you mean 'model.hidden'?"),
    ([QUICK, "--config.model.hidden=wide"], "--config.model.hidden=wide: invalid literal"),
    (["--config.model.hidden=4"], "--config.model.hidden changes the config of --mode=train: name one with --config="),
    (["--config=none.py"], "no config file none.py: the configs are "),
    ([f"--config={__file__}"], "test_main.py is no config: it has no function get_config"),
    (
        [f"--config={ROOT}/configs/cifar10.py:tiny"],
        "unknown variant 'tiny' of cifar10: known: paper, small, context, smoke",
    ),
    (["--mode=evalute", QUICK], "unknown mode 'evalute': did you mean 'evaluate'?"),
    (["--mode=evaluate"], "--mode=evaluate needs --workdir=RUN: "),
    (["--mode=compress", "--workdir=RUN", "--input=a.png"], "--mode=compress needs --output=PATH: "),
    (["--mode=reconstruct", "--workdir=RUN", "some.png"], "image files are named with --input=some.png"),
    (["--mod=evaluate"], "unknown flag --mod: did you mean 'mode'?"),
    (
        ["--mode=evaluate", "--workdir=RUN", "--temperature=2"],
        "--temperature is for --mode=sample or complete, not evaluate",
    ),
    ([QUICK, "--keep=0.5"], "--keep is for --mode=complete, not train"),
    (["--mode=sample", "--workdir=RUN", "--skip"], "--skip is for --mode=compress, not sample"),
    ([QUICK, "--overwrite"], "--overwrite is for --mode=sample or compress or decompress, not train"),
    (["--mode=evaluate", "--workdir=RUN", QUICK], "--config is for --mode=train, not evaluate"),
    (["--mode=evaluate", QUICK, "--config.seed=1"], "--config.seed changes the config of --mode=train"),
    (["--mode=complete", "--workdir=RUN", "--input=a.png", "--split=train"], "--split is about images of the data set"),
    (["--mode=sample", "--workdir=RUN", "--num=0"], "--num=0"),
    (["--mode=sample", "--workdir=RUN", "--temperature=hot"], "--temperature=hot"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=lambda case: " ".join(case)[-40:] if isinstance(case, list) else ""
)
def test_a_mistake_on_the_command_line_is_one_line_that_says_what_to_do(arguments, message):
    with pytest.raises(InputError) as caught:
        parse(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_is_one_line_and_exit_status_2(folder):
    run = folder / "runs" / "quickstart-smoke"
    done = command("--mode=sample", f"--workdir={run}", "--temperature=0", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the temperature is 0.0: it must be above 0\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([QUICK, "--config.model.hiden=4"], "unknown option model.hiden: did you mean 'model.hidden'?"),
        ([QUICK, "--config.data.name=cifar"], "unknown dataset 'cifar': did you mean 'cifar10'?"),
        ([QUICK, "--config.model.likelihood=gauss"], "unknown likelihood 'gauss'"),
        ([QUICK, "--config.model.quantizer.codebook_size=0"], "quantizer.codebook_size is 0: it must be at least 1"),
        ([QUICK, "--config.data.name=cifar10", "--data_dir=nowhere"], "no data folder nowhere"),
        (["--mode=evaluate", "--workdir=nowhere"], "no run in nowhere: train first"),
        (
            ["--mode=reconstruct", "--workdir=RUN", "--output=grid"],
            "cannot write a picture to grid: its name must end in .png",
        ),
        ([QUICK, "--workdir=RUN"], "holds a run of another config: "),
        (["--mode=sample", "--workdir=RUN", "--top_k=1000"], "top_k is 1000: it must be 0 (all) to 128"),
        (["--mode=sample", "--workdir=RUN", "--class=coffee"], "this prior knows no classes"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(folder, arguments, message):
    run = str(folder / "runs" / "quickstart-smoke")
    done = command(*(argument.replace("=RUN", f"={run}") for argument in arguments), cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize("tensorboard", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_full_disk_is_one_line(folder, photo_dir, tensorboard):
    """The system itself refuses to write a file of more than 20 kB: orbax's threads fail as on a full disk."""
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    limit += "sys.argv[0] = 'main'; runpy.run_module('vqvae_jax.main', run_name='__main__')"
    steps = [
        "--config.train.num_steps=4",
        "--config.train.checkpoint_every=2",
        f"--config.logging.tensorboard={tensorboard}",
    ]
    line = [
        sys.executable,
        "-c",
        limit,
        QUICK,
        *TINY,
        *steps,
        f"--data_dir={photo_dir}",
        f"--workdir=full-{tensorboard}",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line and not line.startswith("train ")]
    assert lines == [
        "error: no space left on disk: make room and run the same command, it goes on from the last checkpoint"
    ]


def test_the_package_offers_names_that_editors_complete():
    for name, module in (
        ("load", "run"),
        ("load_data", "data.sources"),
        ("show", "evaluation.plots"),
        ("train", "training.loop"),
    ):
        assert getattr(vqvae_jax, name).__module__ == f"vqvae_jax.{module}"
        assert name in dir(vqvae_jax)
        assert name in vqvae_jax.__all__
    assert vqvae_jax._HOMES.keys() | {"__version__"} == {*vqvae_jax.__all__}
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        vqvae_jax.lod  # noqa: B018
    # What editors read is what is imported.
    stated = re.findall(
        r"^    from (\S+) import (\S+)$", (ROOT / "vqvae_jax" / "__init__.py").read_text(), re.MULTILINE
    )
    assert {(f"vqvae_jax.{home}", name) for name, home in vqvae_jax._HOMES.items()} == {*stated}


def test_the_package_imports_nothing_until_it_is_asked():
    code = "import sys, vqvae_jax; print([name for name in sys.modules if name.startswith(('jax', 'vqvae_jax.'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_wheel_would_hold_every_package_and_the_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"vqvae": "vqvae_jax.start:command"}
    assert callable(start.command)
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "vqvae_jax.__version__"}
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["vqvae_jax*"]
    folders = {path.parent for path in (ROOT / "vqvae_jax").rglob("*.py")}
    assert len(folders) > 5
    assert all((folder / "__init__.py").is_file() for folder in folders)
    assert project["tool"]["setuptools"]["package-data"] == {"vqvae_jax": ["py.typed"]}
    assert (ROOT / "vqvae_jax" / "py.typed").is_file()
