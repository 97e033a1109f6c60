"""The command line: `--config=FILE[:ARGUMENT]` or a folder, and `--config.FIELD=VALUE`.

Reading a config imports neither jax nor TensorFlow, so a mistake in one is told at once. absl and
ml_collections parse flags and values; their tracebacks and exit codes are replaced by UserErrors.
"""

import difflib
import importlib.util
import inspect
import json
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import googlenet
from inception_jax.errors import UserError

HELP = """\
  --config=FILE[:ARGUMENT]  the recipe: a Python file with get_config(); ARGUMENT is handed to it.
                            Or a folder with the config.json of a run
  --config.FIELD=VALUE      change one field of it, as in --config.schedule.rate=0.02; None sets a
                            field of the network back to what was published
"""

# What runs did before there were these fields, which their stored configs lack.
BEFORE = {
    "init_from": "",
    "profile": "",
    "compile_cache": "",
    "cluster.start_timeout": 120.0,
    "cluster.dead_timeout": 60.0,
    "mesh.slices": -1,
    "mesh.fully_sharded": False,
    "optim.freeze": [],
    "optim.skip_nonfinite": 0,
    "eval.sizes": [],
    "data.train_sizes": [],
    "data.interpolation": "antialiased",
    "data.brightness": 0.0,
    "data.contrast": 0.0,
    "data.saturation": 0.0,
    "data.hue": 0.0,
    "data.randaugment_layers": 0,
    "data.randaugment_magnitude": 9.0,
    "data.erasing": 0.0,
    "data.mixup": 0.0,
    "data.cutmix": 0.0,
    "data.unreadable": "error",
    "data.cache": "",
    "data.cache_resize": 0,
}


def parse(
    argv: list[str], define: Callable[[flags.FlagValues], None] = lambda _: None
) -> tuple[flags.FlagValues, ConfigDict]:
    """Reads a command line.

    Args:
      argv: the program's name and its arguments.
      define: adds the command's own flags.

    Returns:
      The flags' values and the config, overrides applied, locked.

    Raises:
      UserError: an unknown flag or field, a value of a wrong type, a config that cannot be read.
    """
    argv = join_values(argv)
    source = source_of(argv)
    if not source:
        raise UserError("no config given: add --config=configs/digits.py, or another of configs/")
    config = load(source)
    _check_fields(argv, config)
    values = flags.FlagValues()
    define(values)
    rest = [arg for arg in argv if not arg.startswith(("--config=", "-config="))]
    parts = [(arg.lstrip("-") if arg.startswith("-") else "").partition("=") for arg in rest]
    last = {name.removeprefix("no"): value for name, _, value in parts}
    unset = [name for name, value in last.items() if _unsets(name, value)]
    rest = [
        arg for arg, (name, _, value) in zip(rest, parts, strict=True) if not _unsets(name, value)
    ]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        positional = values(rest)
    except flags.UnrecognizedFlagError as error:
        known = [name for name in values if not name.startswith("config.")]
        raise UserError(
            f"unknown flag --{error.flagname}{_nearest(error.flagname, known, '--')}; see --help"
        ) from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_wrong_value(error, config)) from None
    for name in unset:  # absl has no word for it
        values.config.update_from_flattened_dict({name.removeprefix("config."): None})
    if len(positional) > 1:
        raise UserError(f"unexpected argument {positional[1]!r}: flags start with --; see --help")
    return values, values.config


def source_of(argv: list[str]) -> str:
    """Returns the FILE[:ARGUMENT] that --config names, or an empty string."""
    given = [
        arg.partition("=")[2]
        for arg in join_values(argv)
        if arg.startswith(("--config=", "-config="))
    ]
    return given[-1] if given else ""


def given(argv: list[str]) -> set[str]:
    """Returns the names of the fields that a command line sets."""
    names = [arg.lstrip("-").partition("=")[0] for arg in join_values(argv) if arg.startswith("-")]
    return {name.partition(".")[2] for name in names if name.startswith(("config.", "noconfig."))}


def load(source: str) -> ConfigDict:
    """Runs get_config() of a config file, or reads what is stored in a folder.

    Args:
      source: FILE, FILE:ARGUMENT or FOLDER.

    Raises:
      UserError: the file is missing, does not run, has no get_config() or returns no ConfigDict;
        the folder has no config.
    """
    if os.path.isdir(source):
        return read(source)
    path, _, argument = source.partition(":")
    module = _module(path)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"config file {path} has no function get_config()")
    arguments = [argument] if argument else []
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except TypeError:
        told = f"takes no argument, but got :{argument}" if argument else "needs an argument"
        raise UserError(f"config file {path} {told}: --config={path}[:ARGUMENT]") from None
    with _user_code(path):
        config = module.get_config(*arguments)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {path} returned {type(config).__name__}: it must return a ConfigDict"
        )
    return config.lock()


def sweep(source: str) -> list[dict[str, Any]]:
    """Runs sweep() of a config file, if it has one.

    Args:
      source: FILE, FILE:ARGUMENT or FOLDER.

    Returns:
      What it yields, values of fields by name: a trial each.

    Raises:
      UserError: the file does not run, or sweep() yields something else.
    """
    if os.path.isdir(source):
        return []
    path = source.partition(":")[0]
    module = _module(path)
    if not hasattr(module, "sweep"):
        return []
    with _user_code(path):
        trials = list(module.sweep())
    for trial in trials:
        if not isinstance(trial, dict) or not all(isinstance(name, str) for name in trial):
            raise UserError(
                f"sweep() of {path} yields {trial!r}: it must yield dicts of fields and values, as"
                " in {'model.lrn': True}"
            )
    return trials


def read(folder: str) -> ConfigDict:
    """Reads the config of a run's workdir, or of imported weights.

    Fields that are younger than it are what BEFORE says.

    Raises:
      UserError: there is none, or one that this version cannot read.
    """
    file = os.path.join(os.path.expanduser(folder), "config.json")
    config = googlenet.get_config()
    known = dict(flatten(config))
    try:
        with open(file) as opened:
            stored = BEFORE | dict(flatten(json.load(opened)))
    except OSError as error:
        raise UserError(
            f"{folder} is neither the workdir of a run nor imported weights: {file}:"
            f" {error.strerror}"
        ) from None
    except (ValueError, AttributeError):  # no JSON, or no fields
        raise UserError(f"{file} is not the config of a run: restore it from a copy") from None
    for name, value in stored.items():
        if name not in known:
            raise UserError(
                f"{file} has config.{name}, which nothing here reads: it is of another version"
            )
        try:
            if value is None and known[name] is not None:
                raise TypeError
            config.update_from_flattened_dict({name: _as_tuples(value)})
        except (TypeError, ValueError):
            raise UserError(
                f"{file} has config.{name}={value!r}, which is of a wrong type: restore it from a"
                " copy"
            ) from None
    return config


def choose(field: str, value: str, known: Iterable[str]) -> None:
    """Raises a UserError that names the nearest known value, unless `value` is one of them."""
    known = list(known)
    if value not in known:
        raise UserError(
            f"config.{field} is {value!r}{_nearest(value, known)}; known: {', '.join(known)}"
        )


def flatten(config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every field that is not itself a group of fields."""
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def join_values(argv: list[str]) -> list[str]:
    """Writes `--config FILE` and `--config.x VALUE` as one argument each, behind argv[0]."""
    joined, rest = argv[:1], list(argv[1:])
    while rest:
        arg = rest.pop(0)
        bare = arg.lstrip("-")
        if (
            arg.startswith("-")
            and "=" not in arg
            and (bare == "config" or bare.startswith("config."))
            and rest
            and not rest[0].startswith("--")
        ):
            arg = f"{arg}={rest.pop(0)}"
        joined.append(arg)
    return joined


class _user_code:
    """Turns whatever a config file raises into one line with the file's own line number."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if not isinstance(error, (Exception, SystemExit)) or isinstance(error, UserError):
            return
        if isinstance(error, SyntaxError) and error.filename:
            where, what = f"{error.filename}, line {error.lineno}", f"syntax error: {error.msg}"
        else:
            lines = [
                frame.lineno
                for frame in traceback.extract_tb(trace)
                if os.path.realpath(frame.filename) == os.path.realpath(self.path)
            ]
            where = f"{self.path}, line {lines[-1]}" if lines else self.path
            what = f"{kind.__name__}: {_told(error)}"
        raise UserError(f"config file {where}: {what}") from None


def _check_fields(argv, config):
    fields = dict(flatten(config))
    for name in sorted(given(argv)):
        if name in fields:
            continue
        if any(field.startswith(f"{name}.") for field in fields):
            raise UserError(
                f"config.{name} is a group of fields: set one, as in --config.{name}.FIELD="
            )
        raise UserError(f"unknown config field config.{name}{_nearest(name, fields, 'config.')}")


def _module(path):
    """Runs a config file."""
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        names = [os.path.join(folder, n) for n in _listdir(folder) if n.endswith(".py")]
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise UserError(
            f"config file {path} {what}{_nearest(path, names) or ': see those in configs/'}"
        )
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None:
        raise UserError(f"config file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with _user_code(path):
        spec.loader.exec_module(module)
    return module


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _nearest(word, known, prefix=""):
    by_last = {name.split(".")[-1]: name for name in known}
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    if not close:
        close = [
            by_last[n] for n in difflib.get_close_matches(word.split(".")[-1], by_last, 1, 0.6)
        ]
    return f": did you mean {prefix}{close[0]}?" if close else ""


def _unsets(name, value):
    return name.startswith("config.") and value == "None"


def _wrong_value(error, config):
    """Says of a flag's value that absl refused which type it needs."""
    told = " ".join(str(error).split())
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", told)
    if not found or found[1] not in dict(flatten(config)):
        return told
    *groups, name = found[1].split(".")
    for group in groups:
        config = config[group]
    return f"config.{found[1]} is {found[2]!r}: it must be of type {config.get_type(name).__name__}"


def _told(error):
    """An exception's message in one line; of ml_collections's long ones, the gist."""
    told = " ".join(str(error).split())
    unknown = re.search(r'Key "(\w+)" does not exist', told) or re.search(r"^\W*'(\w+)'", told)
    nearest = re.search(r'Did you mean "(\w+)"', told)
    if unknown and isinstance(error, (AttributeError, KeyError)):
        hint = f": did you mean {nearest[1]}?" if nearest else ""
        return f"unknown field {unknown[1]}{hint}"
    return told


def _listdir(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
