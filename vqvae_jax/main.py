"""The command: `vqvae --config=configs/quickstart.py`, or `vqvae --mode=... --workdir=RUN`."""

import inspect
import os
import re
import runpy
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any, NoReturn

from vqvae_jax.start import OFF, with_huge_pages

if __name__ == "__main__":  # this program, and no other one that imports it
    with_huge_pages()

# Before jax is imported: its C++ half would report on TPUs and compilation that no user asked about.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The same bits on every run on a GPU, too, where sums would else be added up in any order; a user's own flags win.
os.environ["XLA_FLAGS"] = f"--xla_gpu_deterministic_ops=true {os.environ.get('XLA_FLAGS', '')}".strip()

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from vqvae_jax import commands, registry
from vqvae_jax.errors import InputError, is_out_of_space, suggest
from vqvae_jax.training import processes
from vqvae_jax.training.loop import Stopped

_MODES = ("train", "evaluate", "reconstruct", "sample", "complete", "compress", "decompress")
MODES: dict[str, Callable] = {name: vars(commands)[name] for name in _MODES}
TEXT, TEXTS, SWITCH, NUMBER = flags.DEFINE_string, flags.DEFINE_multi_string, flags.DEFINE_boolean, flags.DEFINE_float
OPTIONS: dict[str, tuple[Callable, str, str]] = {  # how absl defines it, its value, what it is
    "mode": (TEXT, "MODE", "what to do"),
    "config": (TEXT, "FILE.py[:VARIANT]", "e.g. configs/quickstart.py"),
    "workdir": (TEXT, "RUN", "the run's folder; default: runs/NAME of the --config"),
    "data_dir": (TEXT, "DIR", "where the data set lies; default: as in the config"),
    "resume": (partial(flags.DEFINE_enum, enum_values=["auto", "never"]), "auto|never", "never: put an old run aside"),
    "step": (
        partial(flags.DEFINE_integer, lower_bound=0),
        "N",
        "read this checkpoint of the image model, and no prior",
    ),
    "split": (TEXT, "SPLIT", "train, validation or test"),
    "input": (TEXTS, "PATH", "an image or a folder, may be repeated; to decompress: a .vqz file"),
    "output": (
        TEXT,
        "PATH",
        "a PNG, a folder of samples, the table as JSON, the .vqz file; decompress: a folder",
    ),
    "num": (partial(flags.DEFINE_integer, lower_bound=1), "N", "images of the split, or samples (of each class)"),
    "class": (TEXTS, "NAME", "by name or number; to sample it may be repeated, a row each"),
    "temperature": (NUMBER, "T", "below 1: more probable codes"),
    "top_k": (flags.DEFINE_integer, "K", "draw from the K most probable codes; 0: all"),
    "top_p": (NUMBER, "P", "draw from the fewest codes that have this probability"),
    "seed": (partial(flags.DEFINE_integer, lower_bound=0), "N", "of the random numbers"),
    "pixels": (TEXT, "mean|sample", "of P(x | z): its mean, or drawn from it"),
    "keep": (NUMBER, "SHARE", "of each image, from the top, that is given"),
    "lossy": (SWITCH, "", "keep the codes alone, of which reconstructions are made"),
    "search_label": (SWITCH, "", "try all classes for every image"),
    "overwrite": (SWITCH, "", "replace what is there"),
    "skip": (SWITCH, "", "leave out files that can't be coded"),
    "coordinator": (TEXT, "HOST:PORT", "of several processes: where the first of them runs, and a free port there"),
    "num_processes": (partial(flags.DEFINE_integer, lower_bound=1), "N", "how many processes there are"),
    "process_id": (partial(flags.DEFINE_integer, lower_bound=0), "N", "which of them this is, from 0"),
    "verify": (SWITCH, "", "decode what was written before it is called done; --noverify: don't"),
}
ALONE = ("compress", "decompress")  # modes that are one process
OF_PROCESSES = dict(inspect.signature(processes.start).parameters)  # flags of the others beside their own
NO_CONFIGS = "in the folder configs/ of the project's source"


def _takes(mode: str) -> dict[str, inspect.Parameter]:
    """The flags of a mode: the keyword arguments of its function, `class_` being a word of Python's."""
    shared = {} if mode in ALONE else OF_PROCESSES
    return {name.rstrip("_"): given for name, given in inspect.signature(MODES[mode]).parameters.items()} | shared


def parse(argv: Sequence[str]) -> tuple[Callable, dict[str, Any]]:
    """Turn a command line into a function of `commands` and its arguments; InputError for whatever is wrong with it."""
    try:
        values = flags.FlagValues()
        values.set_gnu_getopt(True)
        for name, (define, _, text) in OPTIONS.items():
            define(name, default=None, help=text, flag_values=values)
        rest = values([word for word in argv if word != OFF], known_only=True)[1:]
        given: dict[str, Any] = {name: values[name].value for name in OPTIONS if values[name].present}
        mode = given.pop("mode", "train")
        function = registry.pick(MODES, mode, "mode")
        if "config" in given:
            path, _, variant = given["config"].partition(":")
            given.setdefault("workdir", f"runs/{'-'.join(filter(None, [Path(path).stem, variant]))}")
            if mode == "train":
                given["config"], rest = load_config(path, variant, rest)
            elif not values["workdir"].present:  # it names the run, and changes nothing of it
                del given["config"]
    except Exception as error:  # absl, ml_collections and the config file have many
        raise InputError(" ".join(str(error).split())) from error
    _check(mode, given, rest)
    return function, {("class_" if name == "class" else name): value for name, value in given.items()}


def _check(mode: str, given: dict, rest: list[str]) -> None:
    """Refuse what the mode would ignore, and demand what it needs."""
    for word in rest:
        name = word.lstrip("-").partition("=")[0]
        if name.startswith("config."):
            raise InputError(f"--{name} changes the config of --mode=train: name one with --config=FILE.py")
        if word.startswith("-"):
            raise InputError(f"unknown flag --{name}: {suggest(name, OPTIONS)}")
        raise InputError(f"unexpected argument {word!r}: image files are named with --input={word}")
    takes = _takes(mode)
    for name in given:
        if name not in takes:
            known = " or ".join(other for other in MODES if name in _takes(other))
            raise InputError(f"--{name} is for --mode={known}, not {mode}")
        if name in ("split", "num", "data_dir") and "input" in given:
            raise InputError(f"--{name} is about images of the data set: leave it out, or --input")
    for name, parameter in takes.items():
        if parameter.default is parameter.empty and name not in given:
            raise InputError(f"--mode={mode} needs --{name}={OPTIONS[name][1]}: {OPTIONS[name][2]}")


def _run_file(path: Path) -> dict[str, Any]:
    sys.path.append(str(path.resolve().parent.parent))  # a config may import another one: from configs import ...
    return runpy.run_path(str(path))


def _config_files() -> list[Path]:
    """The configs in the folder where the command is run, or beside the package."""
    folders = Path("configs"), Path(__file__).parent.parent / "configs"
    return next(filter(None, (sorted(folder.glob("[!_]*.py")) for folder in folders)), [])


def load_config(path: str, variant: str, words: list[str]) -> tuple[dict, list[str]]:
    """Give a file's config, changed by what `words` have of --config.KEY=VALUE, and the other words."""
    if not os.path.isfile(path):
        raise InputError(f"no config file {path}: the configs are {', '.join(map(str, _config_files())) or NO_CONFIGS}")
    file, values = _run_file(Path(path)), flags.FlagValues()
    if "get_config" not in file:
        raise InputError(f"{path} is no config: it has no function get_config")
    config = file["get_config"](*filter(None, [variant]))
    for key in re.findall(r"^--?(?:no)?config\.([^=\[\n]+)", "\n".join(words), re.MULTILINE):
        section: Any = config
        prefix = ""
        for part in key.split("."):
            known = [prefix + name for name in section] if isinstance(section, ConfigDict) else [prefix[:-1]]
            if prefix + part not in known:
                raise InputError(f"unknown option {key}: {suggest(prefix + part, known)}")
            section, prefix = section[part], f"{prefix}{part}."
    values.set_gnu_getopt(True)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *words])
    rest = values(["", *words], known_only=True)[1:]
    return config.to_dict(), rest


def help_lines() -> Iterator[str]:
    """Say what the command takes: each mode with its flags, and the configs that there are."""
    yield "vqvae --mode=MODE --FLAG=VALUE ...   (or python -m vqvae_jax.main; the mode is train if none is named)"
    for mode, function in MODES.items():
        yield f"\n--mode={mode}: {(inspect.getdoc(function) or '').splitlines()[0]}"
        for name, parameter in _takes(mode).items():
            _, value, text = OPTIONS[name]
            default = f" [{parameter.default}]" if type(parameter.default) in (str, int, float) else ""
            yield f"  {'--' + name + (f'={value}' if value else ''):27} {text}{default}"
    yield "\n--config.KEY=VALUE changes an option of the config of --mode=train, e.g. --config.train.num_steps=100"
    yield f"\n{OFF}, in every mode: don't start once more to have memory in huge pages, as on Linux CPUs"
    yield f"\nconfigs: {'' if _config_files() else NO_CONFIGS}"
    for path in _config_files():
        file = _run_file(path)
        variants = ", ".join(f":{name}" for name in file.get("VARIANTS", ()) if name)
        yield f"  {path}  {variants}"
        yield f"      {(file['__doc__'] or '').partition(chr(10))[0]}"


def _report(hook: Callable, arguments) -> None:
    """Leave out tracebacks of threads that write checkpoints: a full disk is raised again where it is handled."""
    # TensorStore reports failed writes one by one, to an event loop that ended with the first of them.
    if str(arguments.exc_value) != "Event loop is closed" and not is_out_of_space(arguments.exc_value):
        hook(arguments)


def keep_compiled() -> None:
    """Keep compiled programs on disk, so that only the first start waits; a damaged file is compiled again."""
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/vqvae_jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _fail(message: object, code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    processes.leave(code)


def run() -> None:
    """Run the program; a mistake of the user's is one line and exit status 2, a stop by signal 130."""
    flags.FLAGS.mark_as_parsed()  # absl's own, for libraries that look
    # Orbax logs its inner workings and tracebacks of what it raises anyway, and asyncio those of all its writes.
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel(CRITICAL)
    keep_compiled()
    threading.excepthook = partial(_report, threading.excepthook)
    sys.unraisablehook = partial(_report, sys.unraisablehook)
    try:
        if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(sys.argv[1:]):
            return print("\n".join(help_lines()))
        function, arguments = parse(sys.argv)
        processes.start(**{name: arguments.pop(name, None) for name in OF_PROCESSES})
        if function.__name__ in ALONE and jax.process_count() > 1:
            raise InputError(f"--mode={function.__name__} is one process: start it once, or with --num_processes=1")
        function(**arguments)
    except InputError as error:
        _fail(error)
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if is_out_of_space(error):
            _fail("no space left on disk: make room and run the same command, it goes on from the last checkpoint")
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _fail("one of several processes failed: start all of them again, they go on from the last checkpoint", 1)


if __name__ == "__main__":
    run()
