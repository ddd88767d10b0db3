"""Processes that read batches: the same batches as threads, one bound of memory, and clean ends."""

import multiprocessing
import os
import pickle
import subprocess
import sys

import cloudpickle
import numpy as np
import psutil
import pytest

from diffjax import data
from diffjax.data.cache import Cache
from diffjax.data.examples import ImageOptions
from diffjax.errors import UserError
from tests import tiny
from tests.data import test_own_data as own


def write_all(root):
    """Writes one set in each layout; returns the names of the sets."""
    own.write_jsonl(root)
    np.savez(root / "x.npz", images=own.IMAGES, labels=own.LABELS)
    own.write_shard(root / "x-0.tar", range(5))
    own.write_shard(root / "x-1.tar", range(5, 12))
    return "folder", "npz:x.npz", "tar:x-*.tar"


def open_set(name, root, **options):
    return data.open_dataset(name, directory=str(root), split="train", options=ImageOptions(6, **options))


@pytest.mark.parametrize("index", range(3))
def test_sources_are_sent_to_other_processes(tmp_path, index):
    """Files are opened again there, and arrays are mapped, not copied."""
    name = write_all(tmp_path)[index]
    source, copy = (open_set(name, tmp_path, cache_gib=0) for _ in range(2))
    content = cloudpickle.dumps(copy)
    assert len(content) < 20_000 and (name == "folder" or len(content) < 12 * own.IMAGES[0].nbytes + 11_000)
    copy = pickle.loads(content)
    for one, other in zip(source, copy, strict=True):
        np.testing.assert_array_equal(one.pop("image"), other.pop("image"))
        assert one == other


@pytest.mark.slow
def test_batches_are_those_of_threads(tmp_path):
    """Also from a later step, with random crops, and with a cache that holds only some examples."""
    write_all(tmp_path)

    def batches():
        source = open_set("folder", tmp_path, fit="random_crop", cache_gib=1e-6)
        return data.Batches(source, batch_size=5, seed=1, flip=True)

    reference, iterator = batches(), batches().iterate(3, workers=2)
    for step, batch in zip(range(3, 12), iterator, strict=False):
        for key, value in reference.batch(step).items():
            assert batch[key].dtype == value.dtype
            assert batch[key].flags.owndata  # not shared memory, which is reported as leaked if the program ends
            np.testing.assert_array_equal(batch[key], value)
    iterator.close()
    assert not multiprocessing.active_children()


def start(script, *arguments, **options):
    """Starts a Python program that imports diffjax."""
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    return subprocess.Popen([sys.executable, script, *map(str, arguments)], env=environment, **options)


FILL = """
import pickle, sys
import numpy as np

def make(i):
    return {"image": np.full((10, 100, 3), i % 250, np.uint8), "label": i, "caption": "é" * i}

cache = pickle.load(open(sys.argv[1], "rb"))
for i in range(int(sys.argv[2]), 200, 2):
    cache.get(i, make)
"""


@pytest.mark.slow
def test_processes_share_one_cache(tmp_path):
    """An example that a process has read is found by the others, and all of them keep no more than the bound."""
    cache = Cache(0.5 / 1024, 200)  # 512 KiB; each process reads 320 kB
    (tmp_path / "cache").write_bytes(pickle.dumps(cache))
    own.write(tmp_path / "fill.py", FILL)
    processes = [start(tmp_path / "fill.py", tmp_path / "cache", part) for part in (0, 1)]
    assert [process.wait() for process in processes] == [0, 0]
    found = {i: example for i in range(200) if (example := cache.find(i))}
    assert 480_000 < sum(3000 + 2 * i for i in found) < 512 * 1024 and {i % 2 for i in found} == {0, 1}
    for i, example in found.items():
        assert (example["image"] == i % 250).all() and (example["label"], example["caption"]) == (i, "é" * i)


@pytest.mark.slow
def test_a_killed_worker_is_an_error(tmp_path):
    write_all(tmp_path)
    source = open_set("folder", tmp_path)
    iterator = data.Batches(source, batch_size=2, seed=0).iterate(workers=1)
    next(iterator)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(
        UserError, match=r"^data\.workers=1: Worker process was .* exit code -9; .* fewer workers"
    ) as error:
        for _ in range(100):
            next(iterator)
    assert "\n" not in str(error.value)


READ = """
import multiprocessing, sys, time
from diffjax import data

if __name__ == "__main__":
    source = data.open_dataset("digits", directory="", split="test", image_size=8)
    iterator = data.Batches(source, batch_size=2, seed=0).iterate(workers=1)
    next(iterator)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(100)
"""


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    own.write(tmp_path / "read.py", READ)
    parent = start(tmp_path / "read.py", stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    worker.wait(timeout=10)
    parent.stdout.close()


@pytest.mark.slow
def test_an_unreadable_file_is_named(tmp_path):
    write_all(tmp_path)
    own.write(tmp_path / "x" / "3.png", b"")
    source = open_set("folder", tmp_path)
    iterator = data.Batches(source, batch_size=4, seed=0).iterate(workers=1)
    with pytest.raises(UserError, match=r"x/3.png: .*: replace or delete the file, or skip it with"):
        for _ in range(6):
            next(iterator)


def test_sources_that_cannot_be_pickled_are_refused(tmp_path):
    class Open:
        def __init__(self):
            self.file = (tmp_path / "x").open("w")

        def __len__(self):
            return 1

        def __getitem__(self, i):
            return {"image": np.zeros((1, 1, 1), np.uint8), "label": 0}

    with pytest.raises(
        UserError, match=r"^data\.workers=2: this data set cannot be read by other processes \(PicklingError"
    ):
        next(data.Batches(Open(), batch_size=1, seed=0).iterate(workers=2))
