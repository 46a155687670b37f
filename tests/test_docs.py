"""README and docs: commands and snippets run, numbers are rendered from result files, links and flags exist."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import render
from vqvae_jax import main, registry
from vqvae_jax.evaluation import evaluate
from vqvae_jax.run import load

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
NOT_RUN = ("pip install", "git clone", "python -m pytest", "python -m experiments.render")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page].read_text(), re.DOTALL)


def without_blocks(text):
    return re.sub(r"```.*?```|" + render.START + ".*?" + render.END, "", text, flags=re.DOTALL)


LINES = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]
COMMANDS = list(dict.fromkeys(line.partition("  #")[0].strip() for line in LINES))
TRAINING = [line for line in COMMANDS if line.startswith("python -m vqvae_jax.main --config=")]
READING = [line for line in COMMANDS if line.startswith("python -m vqvae_jax.main --mode=")]
EXPERIMENTS = [line for line in COMMANDS if line.startswith("python -m experiments.") and not line.startswith(NOT_RUN)]
# Small enough for a second or two.
SMALL = "--config.model.hidden=4 --config.model.residual_units=4 --config.train.num_steps=2 --config.data.batch_size=4"
SMALL += " --config.eval.test_images=8 --config.eval.validation_images=8 --config.eval.fit_images=8"
SMALL += " --config.eval.samples=2 --config.eval.subset_images=4 --config.eval.subset_samples=3"
PRIOR = "--config.prior.num_steps=2 --config.prior.batch_size=4 --config.prior.features=32 --config.prior.layers=1"


@pytest.fixture
def workspace(tmp_path, photo_dir):
    """A folder that looks like the project's to a command, with some images of the user's."""
    for name in ("configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(Path(photo_dir) / "coffee.png", tmp_path / "photo.png")
    random = np.random.default_rng(0)
    for n in range(60):
        path = tmp_path / "images" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path


def run(words, cwd):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def arguments(line):
    return shlex.split(line)[1:]


def test_every_command_is_of_a_kind_that_is_tried():
    assert TRAINING
    assert READING
    assert EXPERIMENTS
    others = set(COMMANDS) - {*TRAINING, *READING, *EXPERIMENTS}
    assert all(line.startswith(NOT_RUN) for line in others), others


@pytest.mark.slow
def test_training_and_reading_commands_run_in_smoke_form(workspace, photo_dir):
    for line in TRAINING:
        words = [word for word in arguments(line) if not word.startswith("--data_dir")]
        if "folder" in line:
            words.append("--data_dir=images")
        else:
            words += ["--config.data.name=photos", f"--data_dir={photo_dir}"]
        if "imagenet" in line:
            words.append("--config.data.image_size=32")
        if "families" not in line and "configs/quantizers" not in line:
            words.append("--config.model.quantizer.num_codebooks=2")
        # Drawing 32x32 codes takes unoptimised programs a while, and nothing in it is ImageNet's.
        stage = "--config.prior.name=none" if "imagenet" in line else PRIOR
        run([*words, *SMALL.split(), *stage.split()], workspace)
    for line in READING:
        run(arguments(line), workspace)


@pytest.mark.slow
@pytest.mark.parametrize("line", EXPERIMENTS)
def test_an_experiment_takes_the_flags_that_a_page_gives_it(line, workspace):
    words = arguments(line)
    known = run([*words[:2], "--help"], workspace)
    for word in words[2:]:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word.partition('=')[0])}\b", known), word


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_snippets_of_a_page_run_one_after_the_other(page, workspace):
    run(["-c", "\n".join(blocks(page, "python"))], workspace)


@pytest.mark.parametrize("template", render.TEMPLATES, ids=lambda path: path.name)
def test_a_rendered_page_is_up_to_date(template):
    page = render.page_of(template).read_text()
    assert render.render(page, template.read_text()) == page, "run python -m experiments.render"


def test_a_template_is_filled_from_result_files(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "r.json").write_text(json.dumps({"x": {"y z": [1.23456, 12345, None]}, "name": "N"}))
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    template = "{a/r.json:name}\n%each N|D: 0|.1f; 0|.2f; 2|.1f\n| N | {a/r.json:x.y z.N:D} |\n{a/r.json:x.y z.1} {a/r.json:x.y z.0}"
    assert render.fill(template) == "N\n| 0 | 1.2 |\n| 0 | 1.23 |\n| 2 | – |\n12,345 1.235"
    with pytest.raises(KeyError, match="missing"):
        render.fill("{a/r.json:missing}")
    rows = [{"name": "a b", "prior": "p.q", "x": 1}, {"name": "a b", "prior": "r", "x": {"y": 2.5}}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert render.fill("{rows.json:[name=a b,prior=p.q].x} {rows.json:[prior=r].x.y:.1f} {rows.json:0.x}") == "1 2.5 1"
    template = "%rows ROW: rows.json[name=a b]\n- {ROW.prior}\n%rows R: rows.json\n{R.name:>5}\nend"
    assert render.fill(template) == "- p.q\n- r\n  a b\n  a b\nend"
    for key, number in (("[name=a b]", 2), ("[name=c]", 0)):
        with pytest.raises(KeyError, match=f"{number} entries"):
            render.fill(f"{{rows.json:{key}.x}}")
    with pytest.raises(ValueError, match="a page needs"):
        render.render("no markers", "")


def test_measured_numbers_stand_in_rendered_blocks_alone():
    # What the papers and others report, and no measurement of ours.
    known = {"README.md": {"4.67 bits/dim"}, "reproduction.md": {"4.51 bits/dim"}}
    for name, path in PAGES.items():
        text = without_blocks(path.read_text())
        found = re.findall(r"\b\d+\.\d+ (?:bits/dim|bits/pixel|dB|ms|MB|images/s|seconds|minutes|times)", text)
        assert set(found) <= known.get(name, set()), name


def test_the_readme_is_short_and_has_no_tags():
    text = PAGES["README.md"].read_text()
    assert len(text.splitlines()) <= 200
    assert re.findall(r"<!--.*?-->", text) == [render.START, render.END]
    for found in ("python -m pytest", "python -m vqvae_jax.main --config=configs/quickstart.py"):  # by .ci/run
        assert re.search(rf"^{re.escape(found)}", text, re.MULTILINE)


def test_the_file_map_names_every_part_of_the_package():
    listed = set(re.findall(r"^  (\S+)", PAGES["README.md"].read_text().partition("vqvae_jax/\n")[2], re.MULTILINE))
    folders = {f"{path.parent.name}/" for path in (ROOT / "vqvae_jax").glob("*/__init__.py")}
    assert folders <= listed
    for name in listed & {"main.py", "registry.py", "run.py"} | folders:
        assert (ROOT / "vqvae_jax" / name).exists()


def _slug(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = PAGES[page]
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", path.read_text()):
        linked = path.parent / target if target else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(_slug, headings), (target, anchor)


def test_flags_in_prose_exist():
    known = {
        *main.OPTIONS,
        "huge_pages",
        "help",
        "out",
        "peer",
        "xla_gpu_deterministic_ops",
    }  # the last three are of other programs
    known |= {f"no{name}" for name in known}
    for name, path in PAGES.items():
        for flag in re.findall(r"`[^`\n]*?--(\w+)", without_blocks(path.read_text())):
            assert flag in known or flag == "config", (name, flag)


@pytest.mark.slow
def test_the_committed_run_has_the_figure_that_is_printed_for_it():
    run = load(RESULTS / "small_run")
    source = registry.build_source(run.meta["config"]["data"], "test")
    printed = json.loads((RESULTS / "quickstart" / "evaluation.json").read_text())
    found = evaluate.evaluate(run, source)
    for key in ("bits_per_dim", "rate", "distortion"):
        assert found[key] == pytest.approx(printed[key], abs=2e-3)  # other processors round otherwise


def test_the_committed_run_samples(tmp_path):
    run(
        arguments(f"python -m vqvae_jax.main --mode=sample --workdir={RESULTS}/small_run --num=64 --output=samples"),
        tmp_path,
    )
    files = sorted((tmp_path / "samples").glob("0*.png"))
    images = np.load(tmp_path / "samples" / "samples.npz")["images"]
    np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in files], images)
    assert len(files) == 64
