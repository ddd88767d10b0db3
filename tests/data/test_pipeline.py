"""Batches: functions of (seed, step), whole epochs, fair flips, and order and errors of prefetching."""

import collections
import itertools
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffjax import data
from diffjax.errors import UserError


class Numbered:
    """Example i is labelled i; its image is dark on the left and i on the right."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        image = np.zeros((4, 4, 1), np.uint8)
        image[:, 2:] = i % 200 + 1
        return {"image": image, "label": np.int32(i), "caption": f"number {i}"}


def mirrored(batch):
    return batch["image"][:, 0, 0, 0] > 0


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@given(length=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 2**32), flip=st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_epoch_visits_every_example_once(length, size, seed, flip):
    """Holds for any sizes, including a batch larger than the source."""
    batches = data.Batches(Numbered(length), batch_size=size, seed=seed, flip=flip)
    steps = -(-3 * length // size)
    labels = np.concatenate([batches.batch(step)["label"] for step in range(steps)])
    for epoch in labels[: 3 * length].reshape(3, length):
        assert sorted(epoch) == list(range(length))


@given(step=st.integers(0, 10**9), seed=st.integers(0, 2**63))
@example(step=0, seed=2**63)
@settings(max_examples=30, deadline=None)
def test_batch_is_pure_and_typed(step, seed):
    batch, repeated = (data.Batches(Numbered(100), batch_size=8, seed=seed, flip=True).batch(step) for _ in range(2))
    assert same(batch, repeated)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "image": ((8, 4, 4, 1), np.uint8),
        "label": ((8,), np.int32),
        "index": ((8,), np.int32),
    }
    assert batch["image"].flags.c_contiguous and batch["image"].flags.owndata
    np.testing.assert_array_equal(batch["index"], np.arange(8))


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_processes_read_parts_of_the_batch(processes):
    """Each process reads its own examples only, and together they read the batch, across ends of epochs."""
    arguments = {"batch_size": 12, "seed": 3, "flip": True}
    for step in range(3):
        whole = data.Batches(Numbered(17), **arguments).batch(step)
        parts = [data.Batches(Numbered(17), share=(i, processes), **arguments).batch(step) for i in range(processes)]
        assert all(len(part["index"]) == 12 // processes for part in parts)
        same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)


def test_epochs_and_seeds_differ_in_order():
    orders = [
        tuple(data.Batches(Numbered(100), batch_size=100, seed=seed).batch(step)["label"])
        for seed, step in itertools.product(range(4), range(4))
    ]
    assert len(set(orders)) == 16  # also: epoch 1 of seed 0 is not epoch 0 of seed 1
    moved = [np.mean(np.array(a) == b) for a, b in itertools.combinations(orders, 2)]
    assert max(moved) < 0.1


def test_flip_is_fair_and_independent_of_the_batch_size():
    one = data.Batches(Numbered(500), batch_size=1000, seed=3, flip=True)
    many = data.Batches(Numbered(500), batch_size=10, seed=3, flip=True)
    whole, parts = one.batch(0), [many.batch(step) for step in range(100)]
    np.testing.assert_array_equal(whole["image"], np.concatenate([part["image"] for part in parts]))
    np.testing.assert_array_equal(whole["label"], np.concatenate([part["label"] for part in parts]))
    flips = mirrored(whole)
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)  # four standard deviations
    twice = {label: set(flips[whole["label"] == label]) for label in range(500)}  # an example, in two epochs
    assert 150 < sum(len(seen) == 2 for seen in twice.values()) < 350


def test_flip_only_mirrors():
    plain = data.Batches(Numbered(50), batch_size=50, seed=0).batch(0)
    flipped = data.Batches(Numbered(50), batch_size=50, seed=0, flip=True).batch(0)
    assert not mirrored(plain).any()
    expected = np.where(mirrored(flipped)[:, None, None, None], plain["image"][:, :, ::-1], plain["image"])
    np.testing.assert_array_equal(flipped["image"], expected)
    np.testing.assert_array_equal(flipped["label"], plain["label"])


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_iterate_resumes_at_any_step(threads):
    batches = data.Batches(Numbered(64), batch_size=10, seed=1, flip=True)
    for start in (0, 7):
        iterator = batches.iterate(start, threads=threads, buffer=4)
        for step, batch in zip(range(start, start + 12), iterator, strict=False):
            assert same(batch, batches.batch(step))
        iterator.close()


def test_iterate_ends_its_threads():
    before = set(threading.enumerate())
    iterator = data.Batches(Numbered(64), batch_size=10, seed=1).iterate(0, threads=2, buffer=4)
    next(iterator)
    started = set(threading.enumerate()) - before
    iterator.close()
    for thread in started:
        thread.join(timeout=10)
    assert started and not any(thread.is_alive() for thread in started)


def test_errors_of_the_source_are_raised_to_the_caller():
    class Broken(Numbered):
        def __getitem__(self, i):
            if i == 13:
                raise OSError("unreadable")
            return super().__getitem__(i)

    iterator = data.Batches(Broken(20), batch_size=4, seed=0).iterate(0, threads=2, buffer=4)
    with pytest.raises(OSError, match="unreadable"):
        for _ in range(5):
            next(iterator)


def test_captions():
    batches = data.Batches(Numbered(30), batch_size=5, seed=0, keys=("image", "label", "caption"))
    batch = batches.batch(2)
    assert batch["caption"].tolist() == [f"number {label}" for label in batch["label"]]


def test_batched_reads_equal_single_reads():
    """`__getitems__` of a source gives the same batches."""
    source = data.open_dataset("digits", directory="", split="test", image_size=8)
    one_by_one = [source[i] for i in range(len(source))]
    fast, slow = (data.Batches(s, batch_size=100, seed=0, flip=True) for s in (source, one_by_one))
    assert same(fast.batch(5), slow.batch(5))


def test_examples_are_not_modified():
    source = data.open_dataset("digits", directory="", split="test", image_size=8)
    before = [source[i]["image"].copy() for i in range(360)]
    data.Batches(source, batch_size=360, seed=0, flip=True).batch(0)["image"][:] = 0
    assert all(np.array_equal(source[i]["image"], image) for i, image in enumerate(before))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "train.batch_size=0: must be positive"),
        ({"seed": -1}, "seed=-1: must not be negative"),
        ({"source": Numbered(0)}, "no examples"),
        ({"keys": ("image", "text")}, "no text: its examples have image, label, caption"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        data.Batches(**{"source": Numbered(10), "batch_size": 2, "seed": 0, **arguments})


@pytest.mark.parametrize("depth", [0, 1, 2, 10])
def test_prefetch_keeps_order_and_runs_ahead(depth):
    put = []

    def record(batch):
        put.append(batch)
        return batch * 10

    iterator = data.prefetch(iter(range(6)), record, depth)
    assert next(iterator) == 0
    assert len(put) == min(depth + 1, 6)
    assert list(iterator) == [10, 20, 30, 40, 50] and put == list(range(6))


def test_prefetch_raises_errors_of_the_source():
    def broken():
        yield from range(3)
        raise OSError("unreadable")

    def refuse(batch):
        if batch == 2:
            raise ValueError("refused")
        return batch

    with pytest.raises(OSError, match="unreadable"):
        collections.deque(data.prefetch(broken(), lambda batch: batch))
    with pytest.raises(ValueError, match="refused"):
        collections.deque(data.prefetch(range(5), refuse))


def test_prefetch_to_a_device():
    batches = data.Batches(Numbered(20), batch_size=4, seed=0)
    iterator = data.prefetch(batches.iterate(3, threads=1, buffer=2), jax.device_put)
    for step in range(3, 6):
        batch = next(iterator)
        assert isinstance(batch["image"], jax.Array) and batch["image"].dtype == np.uint8
        assert same(jax.device_get(batch), batches.batch(step))


def test_fast_enough_for_a_tiny_model():
    """Batches of 8 x 8 digits at more than 20,000 images a second on one core."""
    source = data.open_dataset("digits", directory="", split="train", image_size=8)
    batches = data.Batches(source, batch_size=128, seed=0, flip=True)
    batches.batch(0)
    start = time.process_time()
    for step in range(100):
        batches.batch(step)
    assert 100 * 128 / (time.process_time() - start) > 20_000
