"""The command line: what it sets, and one line for every mistake in it or in a config file."""

import json
import subprocess
import sys

import pytest
from absl import flags
from conftest import ROOT

from inception_jax import config as config_lib
from inception_jax import main
from inception_jax.errors import UserError

DIGITS = f"--config={ROOT}/configs/digits.py"
DEFAULTS = (
    "from configs import googlenet\n\ndef get_config({}):\n    config = googlenet.get_config()\n"
)


def parse(*args):
    values, config = config_lib.parse(
        ["main", *args], lambda f: flags.DEFINE_string("workdir", None, "", flag_values=f)
    )
    return values, config


def message(*args):
    with pytest.raises(UserError) as caught:
        parse(*args)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400, text  # it is to be read
    return text


def recipe(tmp_path, *lines, arguments="", name="recipe.py"):
    """Writes a config file built on the defaults."""
    path = tmp_path / name
    body = "".join(f"    {line}\n" for line in (*lines, "return config"))
    path.write_text(DEFAULTS.format(arguments) + body)
    return path


def lookup(config, field):
    for name in field.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize(
    ("args", "field", "expected"),
    [
        (["--config.seed=7"], "seed", 7),
        (["--config.seed", "7"], "seed", 7),
        (["-config.seed=7"], "seed", 7),
        (["--config.seed=6", "--config.seed=7"], "seed", 7),
        (["--config.seed=-7"], "seed", -7),
        (["--config.mesh.data", "-1"], "mesh.data", -1),
        (["--config.schedule.rate=2.5e-3"], "schedule.rate", 0.0025),
        (["--config.schedule.rate", "-0.5"], "schedule.rate", -0.5),
        (["--config.epochs=5"], "epochs", 5.0),
        (["--config.model.name=alexnet"], "model.name", "alexnet"),
        (["--config.model.name", "alexnet"], "model.name", "alexnet"),
        (["--config.data.dir=/a=b c"], "data.dir", "/a=b c"),
        (["--config.data.name=5"], "data.name", "5"),
        (["--config.data.mirror"], "data.mirror", True),
        (["--config.data.mirror=true"], "data.mirror", True),
        (["--config.data.mirror=1"], "data.mirror", True),
        (["--config.data.mirror", "True"], "data.mirror", True),
        (["--config.data.mirror", "--config.seed=7"], "data.mirror", True),
        (["--config.model.batch_norm=false"], "model.batch_norm", False),
        (["--config.model.batch_norm=0"], "model.batch_norm", False),
        (["--config.model.batch_norm", "False"], "model.batch_norm", False),
        (["--noconfig.model.batch_norm"], "model.batch_norm", False),
        (["--config.data.crop_area=(0.25, 0.5)"], "data.crop_area", (0.25, 0.5)),
        (["--config.data.crop_area=0.25,0.5"], "data.crop_area", (0.25, 0.5)),
        (["--config.data.mean", "(1.0,-2.0,3.0)"], "data.mean", (1.0, -2.0, 3.0)),
        (["--config.model.pyramid=1,2"], "model.pyramid", (1, 2)),
        (["--config.model.lrn_k=3"], "model.lrn_k", 3.0),
        (["--config.optim.freeze=(conv|fc6).*"], "optim.freeze", ("(conv|fc6).*",)),
        (["--config.optim.freeze='conv1','a,b'"], "optim.freeze", ("conv1", "a,b")),
        (["--config.model.batch_norm=None"], "model.batch_norm", None),
        (["--config.model.batch_norm", "None"], "model.batch_norm", None),
        (
            ["--config.model.batch_norm=1", "--config.model.batch_norm=None"],
            "model.batch_norm",
            None,
        ),
        (
            ["--config.model.batch_norm=None", "--config.model.batch_norm=1"],
            "model.batch_norm",
            True,
        ),
        (
            ["--config.model.batch_norm=None", "--noconfig.model.batch_norm"],
            "model.batch_norm",
            False,
        ),
    ],
)
def test_a_field_is_set_to_a_value_of_its_type(args, field, expected):
    _, config = parse(DIGITS, *args)
    value = lookup(config, field)
    assert value == expected
    assert type(value) is type(expected)
    others = dict(config_lib.flatten(config)).items()
    before = dict(config_lib.flatten(parse(DIGITS)[1]))
    assert {name for name, other in others if before[name] != other} <= {field, "seed"}


def test_the_config_is_given_in_two_words_or_one_and_the_last_one_counts(tmp_path):
    other = str(recipe(tmp_path, "config.seed = 5"))
    for args in (
        [f"--config={other}"],
        ["--config", other],
        ["-config", other],
        [DIGITS, "--config", other],
        ["--config.epochs", "2", "--config", other],
    ):
        assert parse(*args)[1].seed == 5


def test_the_commands_own_flags_stand_anywhere():
    for args in (["--workdir=x", DIGITS], [DIGITS, "--workdir", "x", "--config.seed=1"]):
        assert parse(*args)[0].workdir == "x"


def test_the_argument_of_a_file_goes_to_get_config(tmp_path):
    path = recipe(tmp_path, "config.data.name = text", arguments="text='none'")
    assert parse(f"--config={path}:a:b,c=1")[1].data.name == "a:b,c=1"
    assert parse(f"--config={path}")[1].data.name == "none"


def test_a_field_that_does_not_exist_cannot_be_added_later(tmp_path):
    path = recipe(tmp_path, "config.unlock()")
    for config in (parse(f"--config={path}")[1], config_lib.load(str(path))):
        with pytest.raises(AttributeError):
            config.batchsize = 3


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--config.batchsize=3"], ["config.batchsize", "did you mean config.batch_size?"]),
        (["--config.modle.name=x"], ["config.modle.name", "did you mean config.model.name?"]),
        (["--config.rate=3"], ["config.rate", "did you mean config.schedule.rate?"]),
        (["--noconfig.data.miror"], ["config.data.miror", "did you mean config.data.mirror?"]),
        (["--config.xyzzy=3"], ["unknown config field config.xyzzy"]),
        (["--config.model=x"], ["config.model is a group of fields", "--config.model.FIELD="]),
        (["--config.seed=1.5"], ["config.seed is '1.5'", "int"]),
        (["--config.seed=x"], ["config.seed is 'x'", "int"]),
        (["--config.seed="], ["config.seed is ''", "int"]),
        (["--config.seed"], ["--config.seed", "value"]),
        (["--config.epochs=ten"], ["config.epochs is 'ten'", "float"]),
        (["--config.data.mirror=maybe"], ["config.data.mirror is 'maybe'", "bool"]),
        (["--config.model.lrn=maybe"], ["config.model.lrn is 'maybe'", "bool"]),
        (["--config.model.lrn_k=x"], ["config.model.lrn_k is 'x'", "float"]),
        (["--config.model.kernel_5x5=3.5"], ["config.model.kernel_5x5 is '3.5'", "int"]),
        (["--wrkdir=x"], ["unknown flag --wrkdir", "did you mean", "workdir?", "--help"]),
        (["--xyzzy"], ["unknown flag --xyzzy", "--help"]),
        (["train"], ["unexpected argument 'train'", "--help"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(args, parts):
    text = message(DIGITS, *args)
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("args", [[], ["--config"], ["--config.seed=1"], ["--workdir=x"]])
def test_without_a_config_one_is_proposed(args):
    assert "add --config=configs/digits.py" in message(*args)


def test_a_file_that_does_not_exist_names_the_nearest(tmp_path):
    path = recipe(tmp_path, name="digits.py")
    for name in ("digit.py", "digits"):
        text = message(f"--config={tmp_path / name}")
        assert text.startswith(f"config file {tmp_path / name} does not exist")
        assert f"did you mean {path}?" in text
    assert "does not exist" in message(f"--config={tmp_path / 'none' / 'digits.py'}")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x = 1\ndef get_config(:\n", ["line 2", "syntax error"]),
        ("def f():\n    x\n  y\n", ["line 3", "syntax error"]),
        ("import json\nimport xyzzy\n", ["line 2", "xyzzy"]),
        ("x = 1\n", ["no function get_config()"]),
        ("get_config = 1\n", ["no function get_config()"]),
        ("def get_config():\n    return {}\n", ["returned dict", "ConfigDict"]),
        ("def get_config():\n    pass\n", ["returned NoneType", "ConfigDict"]),
        ("import json\ndef get_config():\n\n    json.loads('{')\n", ["line 4", "JSONDecodeError"]),
        ("def get_config():\n    raise ValueError('a\\nb')\n", ["line 2", "ValueError: a b"]),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line_with_its_number(text, parts, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(text)
    said = message(f"--config={path}")
    assert all(part in said for part in ("bad.py", *parts)), said


def test_a_file_that_is_not_python_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    assert "is not a Python file" in message(f"--config={tmp_path}/recipe.yaml")


@pytest.mark.parametrize(
    ("line", "nearest"),
    [("config.batch_sze = 3", "batch_size"), ("config.data.imagesize = 3", "image_size")],
)
def test_a_misspelt_field_in_a_recipe_names_its_line_and_the_nearest(line, nearest, tmp_path):
    text = message(f"--config={recipe(tmp_path, 'config.seed = 1', line)}")
    assert "recipe.py, line 6" in text
    assert nearest in text


def test_a_wrong_type_in_a_recipe_names_its_line(tmp_path):
    text = message(f"--config={recipe(tmp_path, 'config.seed = 1.5')}")
    assert "recipe.py, line 5" in text
    assert "'seed'" in text


def test_an_argument_too_many_or_too_few_is_told_of_the_users_file(tmp_path):
    text = message(f"--config={recipe(tmp_path)}:x")
    assert "takes no argument, but got :x" in text
    text = message(f"--config={recipe(tmp_path, arguments='variant')}")
    assert "recipe.py" in text
    assert "argument" in text


def test_a_folder_with_the_config_of_a_run_is_a_recipe(tmp_path):
    """With what is younger than the run at its default."""
    _, config = parse(DIGITS, "--config.seed=3", "--config.optim.betas=0.5,0.75")
    stored = json.loads(config.to_json_best_effort())
    del stored["init_from"], stored["optim"]["freeze"], stored["model"]["pyramid"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    again = parse(f"--config={tmp_path}", "--config.epochs=2")[1]
    expected = dict(config_lib.flatten(config)) | {"epochs": 2.0}
    assert dict(config_lib.flatten(again)) == expected
    types = {name: type(value) for name, value in config_lib.flatten(again)}
    assert types == {name: type(value) for name, value in expected.items()}


def test_a_run_from_before_there_were_distortions_has_none(tmp_path):
    _, config = parse(DIGITS)
    stored = json.loads(config.to_json_best_effort())
    for name in ("interpolation", "brightness", "contrast", "saturation"):
        del stored["data"][name]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    data = parse(f"--config={tmp_path}")[1].data
    assert (data.interpolation, data.brightness) == ("antialiased", 0.0)
    assert (data.contrast, data.saturation) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "is neither the workdir of a run nor imported weights: "),
        ("{", "config.json is not the config of a run: restore it from a copy"),
        ("[1]", "config.json is not the config of a run"),
        ("\xff", "config.json is not the config of a run"),
        ('{"optim": {"centred": 1}}', "config.json has config.optim.centred, which nothing here"),
        ('{"model": 5}', "config.json has config.model, which nothing here reads"),
        ('{"seed": "x"}', "config.json has config.seed='x', which is of a wrong type"),
        ('{"seed": null}', "config.json has config.seed=None, which is of a wrong type"),
    ],
)
def test_a_folder_without_such_a_config_is_told(content, part, tmp_path):
    if content:
        (tmp_path / "config.json").write_bytes(content.encode("latin1"))
    text = message(f"--config={tmp_path}")
    assert text.startswith(str(tmp_path))
    assert part in text


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ([DIGITS], set()),
        (["--config", "a", "--config.seed=1", "--workdir", "config.epochs"], {"seed"}),
        (["--noconfig.data.mirror", "-config.model.lrn", "None"], {"data.mirror", "model.lrn"}),
        (
            ["--config.data.mirror", "--config.data.dir", "--config.x"],
            {"data.mirror", "data.dir", "x"},
        ),
    ],
)
def test_which_fields_a_command_line_sets(args, names):
    assert config_lib.given(["main", *args]) == names


def test_runs_of_one_recipe_share_a_folder_however_it_is_given():
    for args in (["--config=configs/digits.py"], ["--config", "configs/digits.py"]):
        assert main._default_workdir(["main", *args, "--config.seed=1"]) == "runs/digits"


WATCH = """
import importlib, json, sys
codes = [
    importlib.import_module(f"inception_jax.{command}").main([command, *args])
    for command, *args in json.loads(sys.argv[1])
]
print(json.dumps([codes, sorted({"jax", "jaxlib", "tensorflow", "flax"} & sys.modules.keys())]))
"""


def test_help_and_mistakes_need_neither_jax_nor_tensorflow(tmp_path):
    """Which take seconds to import."""
    typo = recipe(tmp_path, "config.batch_sze = 3")
    stored = tmp_path / "run"
    stored.mkdir()
    (stored / "config.json").write_text(parse(DIGITS)[1].to_json_best_effort())
    commands = [
        ["main", "--help"],
        ["evaluate", "--help"],
        ["main"],
        ["main", DIGITS, "--config.batchsize=3"],
        ["main", DIGITS, "--config.seed=x"],
        ["main", DIGITS, "--config.model.name=xyzzy"],
        ["main", DIGITS, "--config.batch_size=0"],
        ["main", f"--config={tmp_path}/none.py"],
        ["main", f"--config={typo}"],
        ["main", DIGITS, f"--config.init_from={tmp_path}/none"],
        ["main", DIGITS, f"--config.init_from={stored}", "--config.epochs=0"],
        ["evaluate"],
        ["evaluate", f"{tmp_path}/none"],
        ["evaluate", str(stored), DIGITS],
        ["evaluate", str(stored), "--format=csv"],
        ["evaluate", str(stored), "--config.eval.batch_size=0"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[0] * 2 + [1] * 14, []]
    lines = done.stderr.splitlines()
    assert len(lines) == 14
    assert all(line.startswith("error: ") for line in lines)


def test_help_tells_the_flags_and_succeeds():
    done = subprocess.run(
        [sys.executable, "-m", "inception_jax.main", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(flag in done.stdout for flag in ("--config=FILE", "--config.FIELD=", "--workdir="))
    assert done.stderr == ""
