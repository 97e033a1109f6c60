"""What a stored run can go on with: another network or another sequence is refused."""

import json

import pytest

from configs import googlenet
from inception_jax import resume
from inception_jax.config import flatten
from inception_jax.errors import UserError

# These would change the network, the sequence of examples or what the optimiser has stored.
REFUSED = {
    *("seed", "batch_size", "data.name", "data.train_split", "optim.momentum_form"),
    *("model.name", "model.auxiliary_heads", "model.batch_norm", "model.width"),
    "model.small_stem",
}
FIELDS = dict(flatten(googlenet.get_config()))


def stored(num_classes=10):
    """As a checkpoint holds it: the JSON of the defaults."""
    return {
        "config": json.loads(googlenet.get_config().to_json_best_effort()),
        "num_classes": num_classes,
        "step": 100,
    }


def other(value):
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case str():
            return value + "x"
        case tuple():
            return tuple(x + 0.5 for x in value)
    return value + 1


def given(field):
    config = googlenet.get_config()
    config.update_from_flattened_dict({field: other(FIELDS[field])})
    return config


def test_the_same_config_goes_on_without_a_word():
    assert resume.compare(stored(), googlenet.get_config(), 10, "runs/x") == []


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_what_would_be_another_run_is_refused(field):
    with pytest.raises(UserError) as caught:
        resume.compare(stored(), given(field), 10, "runs/x")
    text = str(caught.value)
    assert "\n" not in text
    assert f"config.{field}={FIELDS[field]}, not {other(FIELDS[field])}" in text
    assert "runs/x" in text
    assert "--workdir" in text


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - REFUSED))
def test_any_other_change_is_told(field):
    before, now = FIELDS[field], other(FIELDS[field])
    if isinstance(before, tuple):
        before, now = list(before), list(now)
    assert resume.compare(stored(), given(field), 10, "runs/x") == [
        f"config.{field}: {before} before, {now} now"
    ]


def test_all_changes_are_told_not_just_the_first():
    config = googlenet.get_config()
    config.epochs, config.schedule.rate = 90.0, 0.02
    assert sorted(resume.compare(stored(), config, 10, "runs/x")) == [
        "config.epochs: 60.0 before, 90.0 now",
        "config.schedule.rate: 0.01 before, 0.02 now",
    ]


def test_a_field_that_one_of_them_lacks_is_told():
    meta = stored()
    del meta["config"]["data"]["mirror"]
    meta["config"]["optim"]["nesterov"] = True
    assert sorted(resume.compare(meta, googlenet.get_config(), 10, "runs/x")) == [
        "config.data.mirror: None before, True now",
        "config.optim.nesterov: True before, None now",
    ]


def test_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match=r"^the run in runs/x has 10 classes, the data 1000: .*--w"):
        resume.compare(stored(), googlenet.get_config(), 1000, "runs/x")
