"""What a stored run can go on with: another network or another sequence is refused."""

import json

import pytest

from configs import googlenet
from inception_jax import checkpoint, program, resume, sharding, validate
from inception_jax.config import flatten
from inception_jax.errors import UserError

# These would change the network, the sequence of examples or what the optimiser has stored.
REFUSED = {
    *("seed", "init_from", "batch_size", "data.name", "data.train_split", "optim.momentum_form"),
    *("model.name", "model.width", "model.batch_norm", "model.batch_norm_epsilon"),
    *("model.lrn", "model.lrn_k", "model.lrn_alpha", "model.module", "model.branches"),
    *("model.projection", "model.modules", "model.kernel_5x5", "model.pool4_window"),
    "model.floor_pools",
    *("model.auxiliary_heads", "model.auxiliary_bins", "model.small_stem", "model.variant"),
    *("model.base", "model.pyramid"),
    *("data.eval_split", "data.eval_resize", "data.image_size"),
    *("data.mean", "data.std", "data.train_sizes", "eval.sizes"),
    *(
        "model.dtype",
        "optim.betas",
        "optim.name",
        "average.name",
        "average.decay",
        "average.start_epochs",
    ),
}
FIELDS = dict(flatten(googlenet.get_config()))
# What None stands for: the paper's network; the others' fields have no value in it.
FIELDS |= {
    "model.dropout": 0.4,
    "model.batch_norm": False,
    "model.batch_norm_epsilon": 1e-5,
    "model.lrn_k": 1.0,
    "model.lrn_alpha": 1e-4,
    "model.module": "reduced",
    "model.branches": "1x1,3x3,5x5,pool",
    "model.modules": "3a,3b,4a,4b,4c,4d,4e,5a,5b",
    "model.kernel_5x5": 5,
    "model.pool4_window": 3,
    "model.floor_pools": "",
    "model.auxiliary_heads": True,
    "model.auxiliary_bins": 0,
    "model.auxiliary_dropout": 0.7,
    "model.small_stem": False,
    "model.space_to_depth": False,
}

FACTS = {"num_classes": 10, "num_examples": 1437}


def stored():
    """As a checkpoint holds it: the JSON of the defaults."""
    config = json.loads(googlenet.get_config().to_json_best_effort())
    return {"config": config, "step": 100, **FACTS}


# Of the fields that have no value.
OTHERS = {bool: True, int: 3, float: 0.25, str: "x", tuple: (1, 2)}


def changed(field):
    """Another value of a field."""
    group, _, name = field.rpartition(".")
    if FIELDS[field] is None and group == "model":
        return OTHERS[googlenet.MODEL_FIELDS[name]]
    return other(FIELDS[field])


def other(value):
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case str():
            return value + "x"
        case tuple():
            return tuple(map(other, value)) or (1,)
    return value + 1


def given(field):
    config = googlenet.get_config()
    config.update_from_flattened_dict({field: changed(field)})
    return config


def test_the_same_config_goes_on_without_a_word():
    assert resume.compare(stored(), googlenet.get_config(), FACTS, "runs/x") == []


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_what_would_be_another_run_is_refused(field):
    with pytest.raises(UserError) as caught:
        resume.compare(stored(), given(field), FACTS, "runs/x")
    text = str(caught.value)
    assert "\n" not in text
    before, now = (json.loads(json.dumps(v)) for v in (FIELDS[field], changed(field)))
    assert f"config.{field}={before}, not {now}: take" in text
    assert "runs/x" in text
    assert "--workdir" in text


@pytest.mark.parametrize("field", sorted(FIELDS.keys() - REFUSED))
def test_any_other_change_is_told(field):
    before, now = FIELDS[field], changed(field)
    before, now = (json.loads(json.dumps(value)) for value in (before, now))
    assert resume.compare(stored(), given(field), FACTS, "runs/x") == [
        f"config.{field}: {before} before, {now} now"
    ]


def test_what_was_published_is_the_same_network_by_silence_or_by_name():
    """A run that was begun with None, or before there were such fields, goes on with either."""
    config = googlenet.get_config()
    config.update_from_flattened_dict(
        {name: value for name, value in FIELDS.items() if name.startswith("model.") and value != ()}
    )
    assert resume.compare(stored(), config, FACTS, "runs/x") == []
    meta = stored()
    meta["config"]["model"] = {"name": "googlenet", "dtype": "float32", "width": 1.0}
    assert resume.compare(meta, googlenet.get_config(), FACTS, "runs/x") == []
    pyramid = googlenet.get_config()
    pyramid.model.name, pyramid.model.pyramid = "sppnet", (1, 2, 3, 6)
    meta["config"]["model"]["name"] = "sppnet"
    assert resume.compare(meta, pyramid, FACTS, "runs/x") == []


def test_all_changes_are_told_not_just_the_first():
    config = googlenet.get_config()
    config.epochs, config.schedule.rate = 90.0, 0.02
    assert sorted(resume.compare(stored(), config, FACTS, "runs/x")) == [
        "config.epochs: 60.0 before, 90.0 now",
        "config.schedule.rate: 0.01 before, 0.02 now",
    ]


def test_a_field_that_one_of_them_lacks_is_told():
    meta = stored()
    del meta["config"]["data"]["mirror"]
    meta["config"]["optim"]["centred"] = True
    assert sorted(resume.compare(meta, googlenet.get_config(), FACTS, "runs/x")) == [
        "config.data.mirror: None before, True now",
        "config.optim.centred: True before, None now",
    ]


def test_runs_from_before_there_were_such_fields_go_on():
    meta = stored()
    del meta["config"]["data"]["train_sizes"], meta["config"]["eval"]["sizes"]
    del meta["config"]["init_from"], meta["config"]["optim"]["freeze"]
    assert resume.compare(meta, googlenet.get_config(), FACTS, "runs/x") == []
    with pytest.raises(UserError, match=r"has config.eval.sizes=\[\], not \[1\]"):
        resume.compare(meta, given("eval.sizes"), FACTS, "runs/x")


def test_imported_weights_are_no_run():
    """They would be overwritten by the first checkpoint."""
    with pytest.raises(UserError) as caught:
        resume.compare(stored() | {"source": "x"}, googlenet.get_config(), FACTS, "weights/x")
    assert str(caught.value) == (
        "weights/x holds imported weights, not a run: start one from them with"
        " --config.init_from=weights/x and another --workdir"
    )


@pytest.mark.parametrize(("fact", "before"), FACTS.items())
def test_other_data_are_refused(fact, before):
    """The number of classes shapes the network, that of examples the order."""
    given_facts = FACTS | {fact: before + 1}
    with pytest.raises(UserError) as caught:
        resume.compare(stored(), googlenet.get_config(), given_facts, "runs/x")
    told = f"the run in runs/x has {fact}={before}, the data {before + 1}: take another --workdir"
    assert str(caught.value).startswith(told)


def test_classes_of_other_names_are_refused_by_the_first_that_differs():
    """As many, so that nothing else would tell: the network's outputs would mean others."""
    names = {"class_names": ["ant", "bee", "cat"]}
    others = FACTS | {"class_names": ["ant", "dog", "cow"]}
    with pytest.raises(UserError) as caught:
        resume.compare(stored() | names, googlenet.get_config(), others, "runs/x")
    told = "the run in runs/x has class_names[1]=bee, the data dog: take another --workdir"
    assert str(caught.value).startswith(told)
    assert resume.compare(stored() | names, googlenet.get_config(), FACTS | names, "runs/x") == []


def test_runs_from_before_classes_had_names_go_on():
    facts = FACTS | {"class_names": ["ant", "bee", "cat"]}
    assert resume.compare(stored(), googlenet.get_config(), facts, "runs/x") == []
    assert resume.compare(stored() | facts, googlenet.get_config(), FACTS, "runs/x") == []


# What may differ has to leave the names and shapes of what is stored alone.
STORED_ALIKE = [
    f for f in FIELDS.keys() - REFUSED if f.startswith(("model.", "loss.", "optim.", "schedule."))
]


@pytest.mark.parametrize("optimiser", validate.OPTIMISERS)
def test_a_change_that_is_only_told_does_restore(optimiser, config):
    """Else a run would stop with arrays that do not fit, after it was said to go on."""
    config.optim.name = optimiser
    config.schedule.name, config.schedule.every_epochs = "step", 8.0
    config.lock()

    def stored(config):
        made = program.make(config, sharding.make_mesh(config.mesh), num_examples=99, num_classes=7)
        return checkpoint.describe(made.state)

    before = stored(config)
    assert any("kernel" in name and "opt_state" in name for name in before)
    told = {f: changed(f) for f in STORED_ALIKE} | {
        "schedule.name": "poly",
        "optim.decay_factors": ((".*/kernel", 2.0), (".*", 1.0)),
        "optim.rate_factors": ((".*", 3.0),),
        "optim.freeze": (".*/bias",),
    }
    assert "optim.clip_norm" in told
    del told["model.space_to_depth"]  # not of the small stem, and without parameters of its own
    config.update_from_flattened_dict(told)
    assert stored(config) == before
