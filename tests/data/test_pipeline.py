"""Batches hold what the order says, from any step on and on any number of hosts."""

import io
import types

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from configs import digits
from inception_jax.data import order, pipeline, repair
from inception_jax.data.repair import Mended
from inception_jax.errors import DataError, UserError

REASONS = {
    "reading": "[Errno 2] No such file: 'picture{}.png'; put",
    "looking": "not an image; put",
    "decoding": "Invalid PNG data, size ",
}
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 8, 8, 3), np.uint8)
LABELS = RNG.permutation(10)
EXAMPLES = RNG.integers(0, 10, (6, 4))  # of 6 batches
EPOCHS = RNG.integers(0, 9, (6, 4))
ALL = np.ones(4, bool)


class Source:
    """Ten images in memory; remembers what was read."""

    def __init__(self):
        self.seen = []

    def __len__(self):
        return len(IMAGES)

    def read(self, index):
        self.seen.append(index)
        buffer = io.BytesIO()
        Image.fromarray(IMAGES[index]).save(buffer, "PNG")
        return buffer.getvalue(), int(LABELS[index])

    def name(self, index):
        return f"picture {index}"


def damaged(index):
    """A PNG whose pixels are not what they were when it was saved."""
    encoded, _ = Source().read(index)
    at = encoded.index(b"IDAT") + 9
    return encoded[:at] + bytes([encoded[at] ^ 255]) + encoded[at + 1 :]


class Unreadable(Source):
    """Some of its pictures fail in reading, in the look at them or in decoding, so many times."""

    def __init__(self, reading=(), looking=(), decoding=(), times=99):
        super().__init__()
        self.failing = {
            kind: dict.fromkeys(which, times)
            for kind, which in zip(REASONS, (reading, looking, decoding), strict=True)
        }

    def read(self, index):
        for kind, failing in self.failing.items():
            if failing.get(index, 0):
                failing[index] -= 1
                if kind == "reading":
                    raise FileNotFoundError(2, "No such file", f"picture{index}.png")
                return b"no image" if kind == "looking" else damaged(index), 0
        return super().read(index)


def settings(**changes):
    """Of 8 x 8 pixels, with the whole image as the patch unless `changes` say otherwise."""
    config = digits.get_config().data
    config.image_size = config.eval_resize = 8
    config.crop_area = config.crop_aspect = (1.0, 1.0)
    config.update(changes)
    return config


def listed(step):
    return order.Rows(EPOCHS[step].astype(np.int32), EXAMPLES[step].astype(np.int32), ALL)


def train(steps, local=slice(0, 4), rows=listed, source=None, **changes):
    source = source if isinstance(source, Mended) else Mended(source or Source())
    return list(pipeline.training(source, rows, local, steps, settings(**changes), seed=1))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, values in mine.items():
            assert values.dtype == other[name].dtype
            np.testing.assert_array_equal(values, other[name])


RANDOM = {"crop_area": (0.1, 0.9), "crop_aspect": (0.5, 2.0)}


def test_each_row_holds_the_example_that_the_order_names():
    kinds = {"image": np.uint8, "label": np.int32}
    kinds |= dict.fromkeys(("epoch", "example", "due"), np.int32)
    batches = train(range(6))
    assert len(batches) == 6
    for step, batch in enumerate(batches):
        assert {name: values.dtype for name, values in batch.items()} == kinds
        np.testing.assert_array_equal(batch["image"], IMAGES[EXAMPLES[step]])
        np.testing.assert_array_equal(batch["label"], LABELS[EXAMPLES[step]])
        np.testing.assert_array_equal(batch["epoch"], EPOCHS[step])
        np.testing.assert_array_equal(batch["example"], EXAMPLES[step])
        np.testing.assert_array_equal(batch["due"], EXAMPLES[step])


@pytest.mark.parametrize("start", [1, 4, 5])
def test_a_resumed_run_sees_the_very_images_of_an_uninterrupted_one(start):
    assert_same(train(range(start, 6), **RANDOM), train(range(6), **RANDOM)[start:])


def test_patches_change_with_the_epoch_and_with_nothing_else():
    """An example twice in an epoch, which no real order holds, gets the same patch twice."""
    epochs, examples = np.array([[0, 1, 0, 1], [7, 7, 7, 7]], np.int32)

    def rows(step):
        return order.Rows((epochs, epochs[::-1])[step], examples, ALL)

    first, second = (batch["image"] for batch in train(range(2), rows=rows, **RANDOM))
    assert (first[0] == first[2]).all()
    assert (first[1] == first[3]).all()
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(second, first[::-1])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_the_batch_that_one_would(hosts):
    share = 4 // hosts
    parts = [train(range(6), slice(h * share, (h + 1) * share), **RANDOM) for h in range(hosts)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, train(range(6), **RANDOM))


SIZES = (8, 12, 5)
SIZE_BY_STEP = [8, 8, 8, 12, 12, 5, 5, 5, 8]  # of batches of 4 out of 10 examples


@pytest.mark.parametrize(("start", "local"), [(0, slice(0, 4)), (2, slice(2, 4)), (4, slice(3, 4))])
def test_sizes_change_with_the_epoch_for_all_hosts_and_after_a_resume_alike(start, local):
    """Rows 2 and 3 of step 2 are of the second epoch, and have the size of the first."""
    rows = order.training(10, 4, seed=3)
    batches = train(range(start, 9), local, rows, train_sizes=SIZES)
    count = local.stop - local.start
    shapes = [(count, size, size, 3) for size in SIZE_BY_STEP[start:]]
    assert [batch["image"].shape for batch in batches] == shapes
    for step, batch in enumerate(batches, start):
        np.testing.assert_array_equal(batch["example"], rows(step).example[local])
        if SIZE_BY_STEP[step] == 8:
            np.testing.assert_array_equal(batch["image"], IMAGES[batch["example"]])


def test_one_size_of_training_need_not_be_that_of_the_image():
    assert {batch["image"].shape for batch in train(range(6), train_sizes=(12,))} == {
        (4, 12, 12, 3)
    }


def test_a_host_reads_only_its_own_rows():
    source = Source()
    train(range(6), slice(2, 4), source=source)
    assert sorted(source.seen) == sorted(EXAMPLES[:, 2:].ravel().tolist())


def test_starting_late_reads_nothing_of_what_came_before():
    source = Source()
    rows = order.training(10, 2, seed=0)  # five steps an epoch, so each example is in one of them
    batches = train(range(3, 5), slice(0, 2), rows, source)
    expected = np.concatenate([rows(3).example, rows(4).example]).tolist()
    assert [int(example) for batch in batches for example in batch["example"]] == expected
    assert sorted(source.seen) == sorted(expected)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 16])
def test_evaluation_yields_every_image_once_and_marks_the_rest(batch_size):
    rows, steps = order.evaluation(10, batch_size), range(-(-10 // batch_size))
    batches = list(
        pipeline.evaluation(Mended(Source()), rows, slice(0, batch_size), steps, settings(**RANDOM))
    )
    assert all(batch.keys() == {"image", "label", "valid"} for batch in batches)
    assert all(len(batch["label"]) == batch_size for batch in batches)
    valid, image, label = (
        np.concatenate([batch[name] for batch in batches]) for name in ("valid", "image", "label")
    )
    assert valid.tolist() == [True] * 10 + [False] * (len(valid) - 10)
    np.testing.assert_array_equal(image[valid], IMAGES)
    np.testing.assert_array_equal(label[valid], LABELS)


def test_evaluation_at_another_size_is_that_of_the_same_images():
    """Twice as large: the mean of each four pixels is near what they were made of."""
    rows = order.evaluation(10, 4)
    batches = list(
        pipeline.evaluation(Mended(Source()), rows, slice(0, 4), range(3), settings(), 16)
    )
    assert [batch["image"].shape for batch in batches] == [(4, 16, 16, 3)] * 3
    label = np.concatenate([batch["label"] for batch in batches])[:10]
    np.testing.assert_array_equal(label, LABELS)
    images = np.concatenate([batch["image"] for batch in batches])[:10]
    small = images.reshape(10, 8, 2, 8, 2, 3).mean((2, 4))
    for image, original in zip(small, IMAGES, strict=True):
        assert np.corrcoef(image.ravel(), original.ravel())[0, 1] > 0.9


def test_hosts_together_evaluate_every_image_once():
    rows = order.evaluation(10, 4)
    parts = [
        list(pipeline.evaluation(Mended(Source()), rows, local, range(3), settings()))
        for local in (slice(0, 2), slice(2, 4))
    ]
    labels = [
        label
        for step in zip(*parts, strict=True)
        for part in step
        for label, valid in zip(part["label"], part["valid"], strict=True)
        if valid
    ]
    assert labels == LABELS.tolist()


def until_error(batches):
    """The batches that came, and what the error said."""
    came = []
    with pytest.raises(UserError) as caught:
        came.extend(batches)
    assert "\n" not in str(caught.value)
    return came, str(caught.value)


@pytest.mark.parametrize("kind", REASONS)
@pytest.mark.parametrize("place", range(2, 10))
def test_the_first_image_that_cannot_be_read_is_named_when_it_is_due(place, kind):
    """Batches before it come; the last image of the epoch, which is bad as well, is due later."""
    rows = order.training(10, 2, seed=0)  # five steps an epoch, so each example is in one of them
    examples = np.concatenate([rows(step).example for step in range(5)]).tolist()
    source = Unreadable(**{kind: (examples[place], examples[9])})
    steps = range(1, 5)
    batches = pipeline.training(Mended(source), rows, slice(0, 2), steps, settings(), seed=1)
    came, text = until_error(batches)
    assert [batch["example"].tolist() for batch in came] == [
        examples[2 * step : 2 * step + 2] for step in range(1, place // 2)
    ]
    reason = REASONS[kind].format(examples[place])
    assert text.startswith(f"picture {examples[place]} cannot be read: {reason}")
    assert not any(noise in text for noise in ("{{", "Op:", "device", "Traceback", ".;"))


def test_a_host_names_an_image_of_its_own_rows():
    source = Unreadable(decoding=EXAMPLES[0])
    batches = pipeline.training(Mended(source), listed, slice(2, 4), range(6), settings(), seed=1)
    _, text = until_error(batches)
    assert text.startswith(f"picture {EXAMPLES[0, 2]} ")


@pytest.mark.parametrize("kind", REASONS)
def test_evaluation_names_an_image_that_cannot_be_read(kind):
    rows = order.evaluation(10, 4)
    batches = pipeline.evaluation(
        Mended(Unreadable(**{kind: (9,)})), rows, slice(0, 4), range(3), settings()
    )
    came, text = until_error(batches)
    assert [len(batch["label"]) for batch in came] == [4, 4]
    assert text.startswith("picture 9 cannot be read: ")


class Failing(Source):
    """As of a network: some examples fail as often as told."""

    def __init__(self, times):
        super().__init__()
        self.times = dict(times)

    def read(self, index):
        if self.times.get(index, 0):
            self.times[index] -= 1
            raise OSError(5, "Input/output error")
        return super().read(index)


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(repair, "time", types.SimpleNamespace(sleep=found.append))
    return found


def test_what_fails_for_a_while_is_waited_for(pauses):
    source = Mended(Failing({3: 5, 4: 1}))
    for index in range(10):
        assert source.read(index)[1] == LABELS[index]
    assert pauses == [1, 2, 4, 8, 16, 1]
    assert source.faults == {}


def test_where_nothing_can_be_read_for_a_while_no_image_is_blamed(pauses):
    source = Mended(Failing(dict.fromkeys(range(10), 99)))
    with pytest.raises(
        DataError, match=r"cannot be read, and nothing else of its set \(Input/outp"
    ):
        train(range(6), source=source, unreadable="skip")
    assert source.faults == {}


def test_what_fails_while_others_are_read_is_unreadable(monkeypatch):
    source = Mended(Failing({3: 99}))
    sleep = types.SimpleNamespace(sleep=lambda _: source.read(1))
    monkeypatch.setattr(repair, "time", sleep)
    with pytest.raises(repair.Unreadable):
        source.read(3)
    assert list(source.faults) == [3]


SKIPPED = {"reading": (3,), "looking": (0, 4), "decoding": (5, 9)}  # so 3 to 5 become 6


@pytest.mark.parametrize("local", [slice(0, 4), slice(1, 3)])
def test_what_cannot_be_read_is_skipped_for_the_next_that_can(local):
    """On every host, after a resume and wherever it comes up alike: with the same patch."""
    source = Mended(Unreadable(**SKIPPED))
    batches = train(range(6), local, source=source, unreadable="skip", **RANDOM)
    instead = {0: 1, 3: 6, 4: 6, 5: 6, 9: 1}
    for step, batch in enumerate(batches):
        due = EXAMPLES[step][local]
        np.testing.assert_array_equal(batch["due"], due)
        expected = [instead.get(index, index) for index in due.tolist()]
        assert batch["example"].tolist() == expected

        def of_these(step):
            example = np.array([instead.get(i, i) for i in EXAMPLES[step].tolist()], np.int32)
            return order.Rows(EPOCHS[step].astype(np.int32), example, ALL)

        [whole] = train(range(step, step + 1), local, of_these, **RANDOM)
        assert (batch["image"] == whole["image"]).all()
        assert (batch["label"] == whole["label"]).all()
    due = set(EXAMPLES[:, local].ravel().tolist())
    assert {0, 3} & due
    for kind, failing in SKIPPED.items():
        for index in due & set(failing):
            reason = REASONS[kind].format(index).removesuffix("; put")
            assert source.faults[index].startswith(reason)
    again = train(range(3, 6), local, source=source, unreadable="skip", **RANDOM)
    assert_same(again, batches[3:])


class Damaged(Source):
    """Photographs as JPEG, in some of which a marker ends the scan that makes no sense there.

    It is met only in decoding the image's last rows.
    """

    def __init__(self, which):
        super().__init__()
        original = load_sample_images().images[0]
        self.encoded = []
        for index in range(10):
            buffer = io.BytesIO()
            Image.fromarray(original[20 * index :][:200, 100:400]).save(buffer, "JPEG", quality=90)
            encoded = buffer.getvalue()
            if index in which:
                at = len(encoded) * 2 // 3
                encoded = encoded[:at] + b"\xff\xc5" + encoded[at:]
            self.encoded.append(encoded)

    def read(self, index):
        return self.encoded[index], int(LABELS[index])


@pytest.mark.parametrize("batch_size", [4, 6])
def test_where_only_some_patches_can_be_decoded_resumes_and_hosts_agree(batch_size):
    """Each is judged by itself: what failed in another epoch does not count."""
    which, steps = (1, 4, 7), range(60)
    rows = order.training(10, batch_size, seed=0)
    options = {"unreadable": "skip", "crop_area": (0.2, 0.6), "image_size": 16}
    whole = train(steps, slice(0, batch_size), rows, Damaged(which), **options)
    due, seen = (np.concatenate([b[name] for b in whole]) for name in ("due", "example"))
    for index in which:  # some of its patches are whole, some are not
        assert set(seen[due == index]) == {index, index + 1}
    assert (seen == due)[~np.isin(due, which)].all()
    for start in range(1, 60, 9):
        resumed = train(steps[start:], slice(0, batch_size), rows, Damaged(which), **options)
        assert_same(resumed, whole[start:])
    half = batch_size // 2
    for host in (slice(0, half), slice(half, batch_size)):
        part = train(steps, host, rows, Damaged(which), **options)
        assert_same(part, [{k: v[host] for k, v in batch.items()} for batch in whole])


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_evaluation_leaves_out_the_same_images_in_batches_of_any_size(batch_size):
    source = Mended(Damaged((1, 4, 7)))
    rows, steps = order.evaluation(10, batch_size), range(-(-10 // batch_size))
    config = settings(unreadable="skip", image_size=64, eval_resize=64)
    batches = pipeline.evaluation(source, rows, slice(0, batch_size), steps, config)
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert np.flatnonzero(valid).tolist() == [0, 2, 3, 5, 6, 8, 9]
    assert sorted(source.faults) == [1, 4, 7]


def test_evaluation_leaves_out_what_cannot_be_read_and_counts_all_else_once():
    source = Mended(Unreadable(**SKIPPED))
    rows = order.evaluation(10, 4)
    config = settings(unreadable="skip")
    batches = list(pipeline.evaluation(source, rows, slice(0, 4), range(3), config))
    valid = np.concatenate([batch["valid"] for batch in batches])
    label = np.concatenate([batch["label"] for batch in batches])
    left = [index for index in range(10) if index not in (0, 3, 4, 5, 9)]
    assert np.flatnonzero(valid).tolist() == left
    np.testing.assert_array_equal(label[valid], LABELS[left])
    assert sorted(source.faults) == [0, 3, 4, 5, 9]


@pytest.mark.parametrize("kind", REASONS)
def test_where_nothing_can_be_read_that_is_told(kind):
    source = Mended(Unreadable(**{kind: range(10)}))
    rows = order.training(10, 2, seed=0)
    config = settings(unreadable="skip")
    with pytest.raises(UserError, match=r"none of 10 images can be read: picture 0 \("):
        list(pipeline.training(source, rows, slice(0, 2), range(5), config, seed=1))
