"""Which example when: every example once an epoch, the same for any history and number of hosts."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from inception_jax import sharding
from inception_jax.data import order

WORD = 2**64 - 1


def philox(seed, epoch, count):
    """Philox4x64-10 in whole numbers, after Salmon et al. 2011; NumPy counts blocks from 1."""
    numbers = []
    for block in range(1, count // 4 + 2):
        (a, b, c, d), (k0, k1) = (block, 0, 0, 0), (seed, epoch)
        for _ in range(10):
            x, y = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = (y >> 64) ^ b ^ k0, y & WORD, (x >> 64) ^ d ^ k1, x & WORD
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
        numbers += [a, b, c, d]
    return numbers[:count]


def expected_permutation(count, seed, epoch):
    numbers = philox(seed, epoch, count)
    return sorted(range(count), key=numbers.__getitem__)


def expected_sequence(count, seed, epochs):
    """(epoch, example) of every position of the training sequence."""
    return [(e, i) for e in range(epochs) for i in expected_permutation(count, seed, e)]


def pairs(rows):
    return list(zip(rows.epoch.tolist(), rows.example.tolist(), strict=True))


@pytest.mark.parametrize(
    ("seed", "epoch", "golden"),
    [
        (0, 0, [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]),
        (0, 1, [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]),
        (1, 0, [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]),
        (3, 7, [5, 0, 6, 9, 8, 7, 4, 2, 3, 1]),
    ],
)
def test_an_old_run_can_be_repeated_since_its_order_never_changes(seed, epoch, golden):
    assert expected_permutation(10, seed, epoch) == golden
    assert order.permutation(10, seed, epoch).tolist() == golden


@pytest.mark.parametrize("count", [1, 2, 17, 1437])
def test_an_epoch_holds_every_example_once(count):
    for seed, epoch in ((0, 0), (0, 5), (2**40, 3)):
        permutation = order.permutation(count, seed, epoch)
        assert sorted(permutation.tolist()) == list(range(count))
        assert permutation.tolist() == expected_permutation(count, seed, epoch)


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(order.permutation(50, seed, epoch)) for seed in range(9) for epoch in range(9)}
    assert len(orders) == 81


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 25])
def test_batches_run_over_the_ends_of_epochs_without_dropping_or_repeating(batch_size):
    rows = order.training(10, batch_size, seed=3)
    batches = [rows(step) for step in range(-(-100 // batch_size))]
    sequence = [pair for batch in batches for pair in pairs(batch)][:100]
    assert sequence == expected_sequence(10, 3, epochs=10)
    assert sorted(sequence) == [(epoch, example) for epoch in range(10) for example in range(10)]
    assert all(batch.valid.all() for batch in batches)


def test_resuming_at_any_step_gives_the_batch_of_an_uninterrupted_run():
    expected = expected_sequence(10, 3, epochs=12)
    backwards = order.training(10, 4, seed=3)
    for step in reversed(range(30)):
        batch = expected[step * 4 : step * 4 + 4]
        assert pairs(order.training(10, 4, seed=3)(step)) == batch
        assert pairs(backwards(step)) == batch


def test_a_batch_across_the_end_of_an_epoch_has_the_size_that_it_begins_with():
    """Ten examples in batches of 4: epochs begin at positions 0, 10, 20 ..., within steps 2, 7."""
    rows = order.training(10, 4, seed=3)
    sizes = [order.size(rows(step), (224, 180, 96)) for step in range(16)]
    first, second, third = [224] * 3, [180] * 2, [96] * 3
    assert sizes == [*first, *second, *third, *[224] * 2, *[180] * 3, *[96] * 2, 224]
    assert {order.size(rows(step), (224,)) for step in range(16)} == {224}


def test_long_runs_do_not_overflow():
    step = 300_000_000  # positions above 2^32
    rows = order.training(10, 20, seed=0)(step)
    expected = [(e, i) for e in (6 * 10**8, 6 * 10**8 + 1) for i in expected_permutation(10, 0, e)]
    assert pairs(rows) == expected


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_number_of_hosts_changes_nothing(hosts, monkeypatch):
    devices = np.array([SimpleNamespace(process_index=d // 2) for d in range(2 * hosts)])
    mesh = SimpleNamespace(devices=devices.reshape(1, -1, 2), size=devices.size)
    expected = expected_sequence(10, 5, epochs=8)
    rows = order.training(10, 8, seed=5)
    for step in range(10):
        batch = []
        for host in range(hosts):
            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            local = sharding.local_rows(8, mesh)
            assert len(local) == 8 // hosts
            batch += pairs(order.Rows(*(column[local] for column in rows(step))))
        assert batch == expected[step * 8 : step * 8 + 8]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_evaluation_counts_every_example_once_and_masks_the_padding(batch_size):
    rows = order.evaluation(10, batch_size)
    batches = [rows(step) for step in range(-(-10 // batch_size))]
    example = np.concatenate([batch.example for batch in batches])
    valid = np.concatenate([batch.valid for batch in batches])
    assert example[valid].tolist() == list(range(10))
    assert len(example) == len(batches) * batch_size
    assert set(example[~valid].tolist()) <= {0}  # padding must be readable
    assert not np.concatenate([batch.epoch for batch in batches]).any()
