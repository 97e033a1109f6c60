"""The trials of a sweep: which there are, and that each is a config that would run."""

import hashlib
import itertools
import operator
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from inception_jax import config as config_lib
from inception_jax import models, validate
from inception_jax.errors import UserError

LONGEST = 120  # characters of a folder's name


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      fields: the fields that make it this one, with their values as typed.
      config: overrides applied.
    """

    fields: dict[str, str]
    config: ConfigDict

    @property
    def name(self) -> str:
        """A folder's name that says what is in it."""
        exact = ",".join(f"{field}={value}" for field, value in self.fields.items()) or "all"
        name = re.sub(r"[^\w.,=+-]+", "_", exact)
        if name != exact or len(name) > LONGEST:
            digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
            name = f"{name[: LONGEST - 9]}-{digest}"
        return name

    def value(self, field: str) -> str:
        """As typed, or as it would be, where the trial leaves it as it is."""
        return self.fields.get(field) or _typed(operator.attrgetter(field)(self.config))

    @property
    def overrides(self) -> list[str]:
        """As arguments of the main job."""
        return [f"--config.{field}={value}" for field, value in self.fields.items()]


def make(source: str, arguments: Sequence[str], axes: Sequence[str], seeds: int) -> list[Trial]:
    """Makes every trial and checks its config.

    Args:
      source: of the config, whose sweep() may yield overrides.
      arguments: --config and overrides that all trials share.
      axes: FIELD=VALUE,VALUE...; every combination of them is tried.
      seeds: how many to try of each, from config.seed on; 0 to leave it.

    Raises:
      UserError: an axis is malformed, two trials are the same, there are none, or one would not
        run.
    """
    own = [{f: _typed(v) for f, v in trial.items()} for trial in config_lib.sweep(source)]
    if not (own or axes or seeds):
        raise UserError(
            f"nothing to try: {source} has no sweep() that yields any; add"
            " --set=FIELD=VALUE,VALUE or --seeds=N"
        )
    _, base = config_lib.parse(["sweep", *arguments])
    choices = [_axis(text) for text in axes]
    if seeds:
        choices.append([{"seed": str(base.seed + i)} for i in range(seeds)])
    fields = [f for choice in choices for f in choice[0]] + [
        *dict.fromkeys(f for t in own for f in t)
    ]
    for field in fields:
        if fields.count(field) > 1:
            raise UserError(f"config.{field} is varied twice: by --set, --seeds or sweep()")
        base_of_seeds = seeds and field == "seed"
        if field in config_lib.given(["", *arguments]) and not base_of_seeds:
            raise UserError(f"config.{field} is both varied and set by --config.{field}")
    found: list[Trial] = []
    for several in itertools.product(own or [{}], *choices):
        values: dict[str, str] = {k: v for each in several for k, v in each.items()}
        trial = Trial(values, base)
        try:
            _, config = config_lib.parse(["sweep", *arguments, *trial.overrides])
            validate.check(config)
            if not config.init_from:  # else the network is that of the weights
                models.build(config.model, num_classes=1).check(config.data.image_size)
        except UserError as error:
            raise UserError(f"trial {trial.name}: {error}") from None
        for other in found:
            if other.config == config:
                raise UserError(f"trials {other.name} and {trial.name} are the same: leave one out")
        found.append(Trial(values, config))
    return found


def _axis(text: str) -> list[dict[str, str]]:
    """Reads FIELD=VALUE,VALUE."""
    field, equals, values = text.partition("=")
    field = field.removeprefix("config.")
    parts = _split(values)
    if not (field and equals and all(parts)):
        raise UserError(f"--set={text}: write FIELD=VALUE,VALUE, as in --set=model.lrn=true,false")
    return [{field: _unquoted(part)} for part in parts]


def _split(values: str) -> list[str]:
    """Splits at commas that are not inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in values:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if depth or quote:
        raise UserError(f"--set: brackets or quotes do not match in {values}")
    return parts


def _unquoted(value: str) -> str:
    """A value without the quotes that kept its commas together."""
    quoted = len(value) > 1 and value[0] in "'\"" and value.find(value[0], 1) == len(value) - 1
    return value[1:-1] if quoted else value


def _typed(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)
