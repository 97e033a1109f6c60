"""Traces of training steps, read with TensorFlow's definition of their format, not jax's."""

import jax
import jax.numpy as jnp
import pytest
from conftest import newest, rows
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from inception_jax import profile
from inception_jax.clock import Clock
from inception_jax.errors import UserError

TANHS = 10  # in a step of train()
RUN = ("--config.epochs=0.5", "--config.log_every_steps=1", "--config.checkpoint.every_steps=10")


def annotated(file):
    """The steps that a trace has, in order, and the names of all that happened."""
    space = xplane_pb2.XSpace.FromString(file.read_bytes())
    steps, names = [], []
    for plane in space.planes:
        stat_names = {number: stat.name for number, stat in plane.stat_metadata.items()}
        for event in (event for line in plane.lines for event in line.events):
            names.append(plane.event_metadata[event.metadata_id].name)
            if names[-1] == "train":
                stats = {stat_names[stat.metadata_id]: stat for stat in event.stats}
                steps.append((event.offset_ps, stats["step_num"].int64_value))
    return [step for _, step in sorted(steps)], names


def train(ours, done, total, stop_at=None):
    """Steps that take the device some milliseconds, until the end or an error."""
    work = jax.jit(lambda x: jax.lax.fori_loop(0, TANHS, lambda _, x: jnp.tanh(x @ x), x))
    state = [work(jnp.ones((500, 500)))]
    for step in ours.around(range(done + 1, total + 1), done, lambda: state, Clock(1)):
        if step == stop_at:
            raise ZeroDivisionError
        state[0] = work(state[0])


def traces(folder):
    return sorted(
        str(path.relative_to(folder / "plugins" / "profile"))
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_a_run_traces_the_steps_asked_for_and_says_where(run_main, tmp_path):
    process = run_main(*RUN, f"--workdir={tmp_path}", "--config.profile=5:8")
    folder = tmp_path / "profile"
    assert process.stderr == ""
    told = f"traced steps 5 to 7: pip install xprof and run tensorboard --logdir={folder}"
    assert told in process.stdout.splitlines()
    assert traces(folder) == ["steps_5_8/host0.xplane.pb"]
    steps, names = annotated(folder / "plugins/profile/steps_5_8/host0.xplane.pb")
    assert steps == [5, 6, 7]
    assert any("train_step" in name for name in names)
    plain = tmp_path / "plain"
    run_main(*RUN, f"--workdir={plain}")
    assert rows(tmp_path) == rows(plain)


def test_a_run_that_fails_within_its_trace_fails_as_any_other(run_main, tmp_path):
    process = run_main(
        *(*RUN, f"--workdir={tmp_path}", "--config.schedule.rate=1e30", "--config.profile=1:20"),
        check=False,
    )
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: training ")
    assert newest(tmp_path) == 0
    assert not [path for path in (tmp_path / "profile").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("done", "found"),
    [(0, {"steps_3_6": [3, 4, 5]}), (3, {"steps_4_6": [4, 5]}), (5, {}), (8, {})],
)
def test_a_resumed_run_traces_what_is_left_of_the_steps(tmp_path, done, found):
    train(profile.Profile("3:6", tmp_path, 9, print), done, 9)
    assert traces(tmp_path) == [f"{name}/host0.xplane.pb" for name in found]
    for name, expected in found.items():
        steps, names = annotated(tmp_path / f"plugins/profile/{name}/host0.xplane.pb")
        assert steps == expected
        worked = [name for name in names if "tanh" in name and not name.startswith("end")]
        assert len(worked) == TANHS * len(steps)  # that of the device is there to its end


def test_the_last_steps_of_a_run_are_traced(tmp_path):
    train(profile.Profile("9:10", tmp_path, 9, print), 0, 9)
    assert annotated(tmp_path / "plugins/profile/steps_9_10/host0.xplane.pb")[0] == [9]
    with pytest.raises(UserError) as caught:
        profile.Profile("9:11", tmp_path, 9, print)
    assert str(caught.value) == (
        "config.profile=9:11 goes past the end of the run at step 9: take a STOP of 10 at most"
    )


def test_processes_on_one_machine_keep_their_traces_apart(tmp_path, monkeypatch):
    for number in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        train(profile.Profile("1:2", tmp_path, 2, print), 0, 2)
    assert traces(tmp_path) == ["steps_1_2/host0.xplane.pb", "steps_1_2/host1.xplane.pb"]


def test_after_a_failure_nothing_is_left_and_another_run_can_trace(tmp_path):
    first = profile.Profile("1:4", tmp_path, 9, print)
    with pytest.raises(ZeroDivisionError):
        train(first, 0, 9, stop_at=2)
    first.close()
    assert not list(tmp_path.iterdir())
    (tmp_path / ".host0" / "old").mkdir(parents=True)  # of a run that was killed in its trace
    (tmp_path / ".host0" / "old" / "old.xplane.pb").write_bytes(b"old")
    train(profile.Profile("1:4", tmp_path, 9, print), 0, 9)
    assert annotated(tmp_path / "plugins/profile/steps_1_4/host0.xplane.pb")[0] == [1, 2, 3]
    assert not (tmp_path / ".host0").exists()


def test_a_trace_that_cannot_be_written_is_told_and_training_goes_on(tmp_path):
    said = []
    (tmp_path / "profile").write_text("a file, where a folder is to be")
    train(profile.Profile("1:4", tmp_path / "profile", 9, said.append), 0, 9)
    (tmp_path / "profile").unlink()
    jax.profiler.stop_trace()  # else jax would start no other in this process
    (line,) = said
    assert line.startswith(f"could not write the trace {tmp_path}/profile/plugins/profile/")
    assert "\n" not in line
