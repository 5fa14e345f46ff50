import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import assert_trees_equal, peak_growth
from replay.test_replays import ALPHA, BETA, ENV, GAMMA, batches
from tensordict import TensorDict

from purerl import Donated, checkpoint, compile, random, replay, storage, tree
from purerl.transforms import shapes, vmap, write


def addresses(state):
    marks = tree.donated(tree.structure(state))
    return [x.data_ptr() for x, is_donated in zip(tree.leaves(state), marks, strict=True) if is_donated]


def test_programs_write_into_the_files_and_compute_the_same(tmp_path):
    memory = replay.make_prioritized(ENV.spec, 60_000, 4)  # some of its memory is large, some is not
    here, there = memory.init(None), storage.mapped(lambda: memory.init(None), tmp_path / "replay")
    assert_trees_equal(tree.leaves(here), tree.leaves(there))
    before, add = addresses(there), compile(memory.add)
    for batch in batches(3):
        here, there = add(here, batch, ALPHA), add(there, batch, ALPHA)
    assert addresses(there) == before
    assert_trees_equal(tree.leaves(here), tree.leaves(there))
    draws = [memory.sample(state, random.key(0), 32, GAMMA, BETA) for state in (here, there)]
    assert_trees_equal(*map(tree.leaves, draws))
    assert list((tmp_path / "replay").iterdir()) == []  # the files have no names, and are gone with the state
    assert f"{tmp_path}/replay/" in Path("/proc/self/maps").read_text()
    checkpoint.save(tmp_path / "saved.safetensors", [there], {})
    found, _ = checkpoint.load(tmp_path / "saved.safetensors", shapes(memory.init, None))
    again = storage.mapped(lambda: found, tmp_path / "replay")
    assert_trees_equal(tree.leaves(again), tree.leaves(there))
    assert not set(addresses(again)) & set(addresses(found))


def test_zeros_are_not_made_in_memory(tmp_path):
    memory = replay.make_uniform(ENV.spec, 4_000_000, 4)
    size = sum(x.nbytes for x in tree.leaves(shapes(memory.init, None)))
    grown, state = peak_growth(lambda: storage.mapped(lambda: memory.init(None), tmp_path))
    assert grown < size / 10
    assert sum(x.nbytes for x in tree.leaves(state)) == size > 1e8


def test_a_disk_without_room_is_told_with_figures(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")(500_000_000)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: usage)
    memory = replay.make_uniform(ENV.spec, 20_000_000, 4)
    with pytest.raises(storage.RoomError, match=r"the memory takes 0\.74 GB, but the disk of .* has 0\.50 GB of room"):
        storage.mapped(lambda: memory.init(None), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_memory_and_one_on_another_device(tmp_path):
    empty = storage.mapped(lambda: Donated(memory={"x": torch.zeros(0, 3)}), tmp_path)
    assert empty.memory["x"].shape == (0, 3)
    if torch.cuda.is_available():
        with pytest.raises(ValueError, match="the memory lies on cuda:0"):
            storage.mapped(lambda: Donated(memory={"x": torch.zeros(3, device="cuda")}), tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_available_memory_is_the_systems_or_the_control_groups(tmp_path, monkeypatch, version):
    def put(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(path, limit, used, idle):
        mount = tmp_path / "cgroup" / "memory" if version == 1 else tmp_path / "cgroup"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
        for name, number in zip(names, (limit, used), strict=True):
            put(mount / path / name, f"{number}\n")
        put(mount / path / "memory.stat", f"anon 1\n{'total_' if version == 1 else ''}inactive_file {idle}\n")

    monkeypatch.setattr(storage, "PROC", tmp_path / "proc")
    monkeypatch.setattr(storage, "CGROUP", tmp_path / "cgroup")
    assert storage.available_memory() == sys.maxsize  # the system does not say
    put(tmp_path / "proc" / "meminfo", "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    line = "4:cpu:/a\n7:hugetlb,memory:/a/b\n0::/\n" if version == 1 else "0::/a/b\n"
    put(tmp_path / "proc" / "self" / "cgroup", line)
    assert storage.available_memory() == 5_120_000  # the groups cannot be seen from here
    group(".", 9223372036854771712 if version == 1 else "max", 10_000_000, 0)
    group("a/b", 4_000_000, 1_000_000, 500_000)
    assert storage.available_memory() == 3_500_000
    group("a", 3_000_000, 1_000_000, 0)
    assert storage.available_memory() == 2_000_000
    group("a", 3_000_000, 3_100_000, 0)
    assert storage.available_memory() == 0


def test_the_machines_memory_is_told():
    assert 1e7 < storage.available_memory() < 1e14


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert storage.there(tmp_path / "a" / "b") == tmp_path
    assert storage.free_disk(tmp_path / "a" / "b") > 0
    assert list(tmp_path.iterdir()) == []


N = 1 << 19  # numbers of a memory that is large


def filled():
    return {"x": torch.zeros(N).fill_(3.0)}


def through_numpy():
    x = torch.zeros(N)
    x.numpy()[5] = 3.0
    return {"x": x}


def through_data():
    x = torch.zeros(2, N // 2)
    x[1].data.add_(1.0)
    return {"x": x}


def computed():
    return {"x": torch.zeros(N) + 1.0, "y": torch.zeros(N)}


@pytest.mark.parametrize("make", [filled, through_numpy, through_data, computed])
def test_memory_that_does_not_begin_with_zeros(tmp_path, make):
    assert_trees_equal(storage.mapped(lambda: Donated(memory=make()), tmp_path).memory.to_dict(), make())
    there = storage.mapped(make, tmp_path)  # which is not donated
    assert_trees_equal(there, make())
    assert all(f"{tmp_path}/" not in line for line in lines_of(there["x"]))


def lines_of(x):
    """The mapping that a tensor lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= x.data_ptr() < end:
            yield line


def test_memory_that_is_written_at_once(tmp_path):
    def make():
        return write(Donated(memory={"x": torch.zeros(N)}), torch.tensor([7]), torch.ones(1))

    assert storage.mapped(make, tmp_path).memory["x"].nonzero().tolist() == [[7]]


def test_the_memory_of_several_lanes_is_not_made_either(tmp_path):
    memory = replay.make_uniform(ENV.spec, 4_000_000, 4)

    def init(key):
        return TensorDict(key=key, many=torch.zeros(N), replay=memory.init(None))

    def make():
        return vmap(init)(random.split(random.key(0), 3))

    size = sum(x.nbytes for x in tree.leaves(shapes(memory.init, None)))
    grown, state = peak_growth(lambda: storage.mapped(make, tmp_path))
    assert grown < size / 10
    assert state["replay"].steps.content.memory["obs"].shape[0] == 3
    assert state["key"].tolist() == random.split(random.key(0), 3).tolist()
    assert all(f"{tmp_path}/" in line for x in addresses_of(state) for line in lines_of(x))
    assert not state["many"].any()


def addresses_of(state):
    marks = tree.donated(tree.structure(state))
    return [x for x, is_donated in zip(tree.leaves(state), marks, strict=True) if is_donated]
