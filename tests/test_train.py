"""An end of the data within the loop; what it trains is tested in whole runs."""

import itertools

from conftest import newest, rows

from inception_jax import main
from inception_jax.data import pipeline
from inception_jax.errors import DataError


def test_what_was_trained_before_an_image_that_cannot_be_read_is_saved(
    tmp_path, monkeypatch, capfd
):
    read = pipeline.training

    def damaged(*arguments):
        yield from itertools.islice(read(*arguments), 4)
        raise DataError("picture 7 cannot be read")

    command = ["main", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    command += [
        "--config.epochs=0.5",
        "--config.schedule.warmup_epochs=0",
        "--config.model.modules=3a",
        "--config.log_every_steps=1",
    ]
    monkeypatch.setattr(pipeline, "training", damaged)
    assert main.main(command) == 1
    assert capfd.readouterr().err == "error: picture 7 cannot be read\n"
    assert newest(tmp_path) == 4
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    monkeypatch.undo()
    assert main.main(command) == 0
    assert "going on from step 4" in capfd.readouterr().out
