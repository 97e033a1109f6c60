"""The command line: `--config=FILE[:ARGUMENT]` and `--config.FIELD=VALUE`.

Reading a config imports neither jax nor TensorFlow, so a mistake in one is told at once. absl and
ml_collections parse flags and values; their tracebacks and exit codes are replaced by UserErrors.
"""

import difflib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from inception_jax.errors import UserError

HELP = """\
  --config=FILE[:ARGUMENT]  the recipe: a Python file with get_config(); ARGUMENT is handed to it
  --config.FIELD=VALUE      change one field of it, as in --config.schedule.rate=0.02
"""


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
    argv = _join_values(argv)
    given = [arg.removeprefix("-") for arg in argv[1:] if arg.startswith(("--config=", "-config="))]
    if not given:
        raise UserError(
            "no config given: add --config=configs/digits.py, or another file of configs/"
        )
    source = given[-1].removeprefix("-").removeprefix("config=")
    config = load(source)
    _check_fields(argv, config)
    values = flags.FlagValues()
    define(values)
    rest = [arg for arg in argv if not arg.startswith(("--config=", "-config="))]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    try:
        positional = values(rest)
    except flags.UnrecognizedFlagError as error:
        known = [name for name in values if not name.startswith("config.")]
        raise UserError(
            f"unknown flag --{error.flagname}{_nearest(error.flagname, known)}; see --help"
        ) from None
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_one_line(error)) from None
    if len(positional) > 1:
        raise UserError(f"unexpected argument {positional[1]!r}: flags start with --; see --help")
    return values, values.config


def load(source: str) -> ConfigDict:
    """Runs get_config() of a config file.

    Args:
      source: FILE or FILE:ARGUMENT.

    Raises:
      UserError: the file is missing, does not run, has no get_config() or returns no ConfigDict.
    """
    path, _, argument = source.partition(":")
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        names = [os.path.join(folder, n) for n in _listdir(folder) if n.endswith(".py")]
        raise UserError(f"config file {path} does not exist{_nearest(path, names)}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None:
        raise UserError(f"config file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with _user_code(path):
        spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"config file {path} has no function get_config()")
    parameters = inspect.signature(module.get_config).parameters
    if argument and not parameters:
        raise UserError(f"config file {path} takes no argument, but got :{argument}")
    with _user_code(path):
        config = module.get_config(*([argument] if argument else []))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {path} returned {type(config).__name__}: it must return a ConfigDict"
        )
    return config.lock()


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


class _user_code:
    """Turns whatever a config file raises into one line with the file's own line number."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or not isinstance(error, Exception) or isinstance(error, UserError):
            return
        if isinstance(error, SyntaxError) and error.filename:
            file, line, what = error.filename, error.lineno, f"syntax error: {error.msg}"
        else:
            frames = [(f.filename, f.lineno) for f in traceback.extract_tb(trace)]
            own = [f for f in frames if os.path.realpath(f[0]) == os.path.realpath(self.path)]
            file, line = (own or frames)[-1]
            what = f"{kind.__name__}: {_one_line(error)}"
        raise UserError(f"config file {os.path.relpath(file)}, line {line}: {what}") from None


def _check_fields(argv, config):
    fields = dict(flatten(config))
    for arg in argv[1:]:
        name = arg.lstrip("-").partition("=")[0]
        if not arg.startswith("-") or not name.startswith("config."):
            continue
        name = name.removeprefix("config.")
        if name in fields:
            continue
        if any(field.startswith(f"{name}.") for field in fields):
            raise UserError(
                f"config.{name} is a group of fields: set one, as in --config.{name}.FIELD="
            )
        raise UserError(f"unknown config field config.{name}{_nearest(name, fields, 'config.')}")


def _join_values(argv):
    """Writes `--config FILE` and `--config.x VALUE` as one argument each, the form used above."""
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


def _nearest(word, known, prefix=""):
    by_last = {name.split(".")[-1]: name for name in known}
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    if not close:
        close = [
            by_last[n] for n in difflib.get_close_matches(word.split(".")[-1], by_last, 1, 0.6)
        ]
    return f": did you mean {prefix}{close[0]}?" if close else ""


def _one_line(error):
    return " ".join(str(error).split())


def _listdir(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def print_help(doc: str, flags_help: str) -> None:
    """Prints what a command is for and which flags it takes."""
    sys.stdout.write(f"{doc.strip()}\n\nFlags:\n{HELP}{flags_help}")
