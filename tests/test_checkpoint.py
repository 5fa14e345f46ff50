import builtins
import contextlib
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import assert_trees_equal, peak_growth
from tensordict import TensorDict

from purerl import checkpoint
from purerl.checkpoint import CheckpointError
from purerl.transforms import shapes


def state(x=1.0):
    return TensorDict(a=torch.full((2, 3), x), b=TensorDict(c=torch.tensor([True, False]), d=torch.tensor(7)), empty=torch.zeros(0))


def test_round_trip(tmp_path):
    checkpoint.save(tmp_path / "x", [state()], {"update": 3})
    loaded, meta = checkpoint.load(tmp_path / "x", state(0.0))
    assert_trees_equal(loaded, state())
    assert meta == {"update": 3}


def test_keeps_two_and_falls_back(tmp_path):
    for i in range(4):
        checkpoint.save_step(tmp_path, i, [state(float(i))], {"update": i})
    paths = sorted(tmp_path.iterdir())
    assert [p.name for p in paths] == ["step_000000000002.safetensors", "step_000000000003.safetensors"]
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    with pytest.warns(
        UserWarning, match=r"step_000000000003.safetensors: truncated, or not a checkpoint .*; trying the one before$"
    ):
        _, meta = checkpoint.load_newest(tmp_path, state())
    assert meta == {"update": 2}
    paths[0].write_bytes(b"\x80\x04pickle")
    with pytest.warns(UserWarning, match="trying the one before"), pytest.raises(CheckpointError, match=r": no whole checkpoint$"):
        checkpoint.load_newest(tmp_path, state())


def test_foreign_altered_other_version_other_structure(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(safetensors.torch.save({"w": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r": a safetensors file, but not a purerl checkpoint$"):
        checkpoint.load(path, state())
    checkpoint.save(path, [state()], {"update": 3})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r": the checksum of b.c does not match, the file was altered$"):
        checkpoint.load(path, state())
    checkpoint.load(path, state(), part=lambda state: state["a"])  # which is whole
    path.write_bytes(data.replace(b"update", b"apdate"))
    with pytest.raises(CheckpointError, match=r": the checksum does not match, the file was altered$"):
        checkpoint.load(path, state(), part=lambda state: state["a"])
    checkpoint.save_step(tmp_path, 3, [state()], {})
    other = state().set("a", torch.zeros(5)).set("z", torch.zeros(5))
    del other["b", "c"]
    with pytest.raises(
        checkpoint.StructureError,
        match=r"step_000000000003.*, whose code has changed since: it has no z; nothing is called b.c any more; "
        r"a is F32 \[2, 3\], not F32 \[5\]$",
    ):
        checkpoint.load_newest(tmp_path, other)
    monkeypatch.setattr(checkpoint, "VERSION", 6)
    with pytest.raises(CheckpointError, match=r": version 5; this purerl reads version 6$"):
        checkpoint.load(tmp_path / "step_000000000003.safetensors", state())


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "x", [state(1.0)], {})
    real = builtins.open

    def full(path, mode="r", **kwargs):
        file = real(path, mode, **kwargs)
        if "w" in mode:
            file.write(b"half")
            file.close()
            raise OSError(28, "No space left on device")
        return file

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(tmp_path / "x", [state(2.0)], {})
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert_trees_equal(checkpoint.load(tmp_path / "x", state())[0], state(1.0))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak")
def test_saving_and_loading_take_no_second_copy(tmp_path):
    size = 1 << 27
    large = TensorDict(replay=torch.arange(size // 4, dtype=torch.int32), small=torch.ones(5))
    grown, _ = peak_growth(lambda: checkpoint.save(tmp_path / "x", [large], {}))
    assert grown < size // 10
    template = shapes(lambda: TensorDict(replay=torch.zeros(size // 4, dtype=torch.int32), small=torch.zeros(5)))
    assert template["replay"].device.type == "meta"
    grown, (loaded, _) = peak_growth(lambda: checkpoint.load(tmp_path / "x", template))
    assert grown < size * 1.1
    assert_trees_equal(loaded, large)
    assert_trees_equal(safetensors.torch.load_file(tmp_path / "x")["['replay']"], large["replay"])
    grown, (part, _) = peak_growth(lambda: checkpoint.load(tmp_path / "x", template, part=lambda state: state["small"]))
    assert grown < size // 10
    assert part["small"].tolist() == [1.0] * 5
    assert part["replay"].device.type == "meta"
    whole, _ = checkpoint.load(tmp_path / "x", template, part=lambda state: state["small"] + 1)  # no tensor of the state
    assert_trees_equal(whole, large)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak")
def test_chunks_take_no_second_copy(tmp_path):
    size = 100_000_000
    large = TensorDict(replay=torch.arange(size // 4, dtype=torch.int32).reshape(4, -1), small=torch.ones(4))
    tiles = [large.apply(lambda x, i=i: x[i : i + 2]) for i in (0, 2)]
    for i in range(2):
        grown, _ = peak_growth(lambda i=i: checkpoint.save_step(tmp_path, i, tiles, {}))
        assert grown < size // 10
    template = shapes(lambda: TensorDict(replay=torch.zeros(4, size // 16, dtype=torch.int32), small=torch.zeros(4)))
    grown, (loaded, _) = peak_growth(lambda: checkpoint.load_newest(tmp_path, template))
    assert grown < size * 1.1
    assert_trees_equal(loaded, large)
    grown, found = peak_growth(lambda: checkpoint.newest_is_whole(tmp_path))
    assert found
    assert grown < size // 10
    shutil.rmtree(tmp_path / "chunks")
    part, _ = checkpoint.load_newest(tmp_path, template, part=lambda state: state["small"])  # which is no chunk
    assert part["small"].tolist() == [1.0] * 4


def test_the_head_tells_the_meta_and_all_of_it_whether_it_is_whole(tmp_path):
    assert not checkpoint.newest_is_whole(tmp_path)
    for i in range(2):
        checkpoint.save_step(tmp_path, i, [state()], {"update": i})
    assert checkpoint.newest_is_whole(tmp_path)
    path = max(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert checkpoint.newest_meta(tmp_path) == {"update": 1}
    assert not checkpoint.newest_is_whole(tmp_path)
    path.write_bytes(data.replace(b"update", b"apdate"))
    assert checkpoint.newest_meta(tmp_path) == {"update": 0}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK", 256)


def ring(filled):
    """Two lanes of which each holds five chunks and a half, of rows of eight bytes, of which so many are filled."""
    content = torch.zeros(2, 176, dtype=torch.int64)
    content[:, :filled] = torch.arange(1, 1 + 2 * filled).reshape(2, -1)
    return TensorDict(content=content, filled=torch.full((2,), filled))


def chunks(folder):
    """The names of the chunks, and which file each is."""
    return {path.name: path.stat().st_ino for path in (folder / "chunks").iterdir()}


def tiles(state):
    return [state.apply(lambda x, i=i: x[i : i + 1]) for i in range(2)]


def named(folder):
    heads = [checkpoint._read_head(path) for path in folder.glob("step_*")]
    return {digest for head in heads for entry in head.tensors.values() for digest in entry.get("chunks", ())}


def test_only_what_is_new_is_written(tmp_path, small_chunks, monkeypatch):
    written, writing = [], checkpoint.writing
    monkeypatch.setattr(checkpoint, "writing", lambda path: (written.append(path.name), writing(path))[1])

    def save(state, steps):
        written.clear()
        checkpoint.save_step(tmp_path, steps, tiles(state), {})
        assert chunks(tmp_path).keys() == named(tmp_path)
        loaded, _ = checkpoint.load_newest(tmp_path, ring(0))
        assert_trees_equal(loaded, state)
        return len(written) - 1

    assert save(ring(0), 0) == 1  # of zeros
    state = ring(0)
    state["content"][:, :40] = 1  # in each lane the first chunk and a part of the second; the first lane ends amid a chunk
    state["content"][1, 40:60] = torch.arange(20)
    before = chunks(tmp_path)
    assert save(state, 1) == 5
    assert before.items() <= chunks(tmp_path).items()
    assert save(state, 2) == 0
    state["content"][0, 100] = 7
    assert save(state, 3) == 1
    assert save(ring(176), 4) == 11
    assert save(ring(176), 5) == 0
    assert len(chunks(tmp_path)) == 11  # what the checkpoints before named is gone
    assert sum(path.stat().st_size for path in (tmp_path / "chunks").iterdir()) == ring(0)["content"].nbytes


class Killed(BaseException):
    pass


@contextlib.contextmanager
def dying(monkeypatch, after, error=Killed, for_good=True):
    """Whatever changes the disk fails after so many times: from then on, as for a process that was killed, or once."""
    count = [0]

    def limited(f, applies=lambda *args, **kwargs: True):
        def limited_f(*args, **kwargs):
            if applies(*args, **kwargs):
                count[0] += 1
                if count[0] - 1 == after or (for_good and count[0] > after):
                    raise error
            return f(*args, **kwargs)

        return limited_f

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, limited(getattr(os, name)))
        patch.setattr(builtins, "open", limited(open, lambda path, mode="r", **kwargs: "w" in mode))
        with contextlib.suppress(error):
            yield count


def test_killed_at_any_moment(tmp_path, small_chunks, monkeypatch, recwarn):
    """Before each step of a save: the newest checkpoint or the one before is whole, and the next save leaves nothing else."""
    for after in range(1000):
        folder = tmp_path / str(after)
        for steps in range(2):
            checkpoint.save_step(folder, steps, tiles(ring(40 * steps)), {"steps": steps})
        with dying(monkeypatch, after) as count:
            checkpoint.save_step(folder, 2, tiles(ring(80)), {"steps": 2})
        loaded, meta = checkpoint.load_newest(folder, ring(0))
        assert meta["steps"] in (1, 2)
        assert_trees_equal(loaded, ring(40 * meta["steps"]))
        assert checkpoint.newest_is_whole(folder)
        assert all(checkpoint.load(path, ring(0)) for path in folder.glob("step_*"))
        checkpoint.clean(folder, meta["steps"])
        assert chunks(folder).keys() == named(folder)
        checkpoint.save_step(folder, 3, tiles(ring(120)), {"steps": 3})
        assert_trees_equal(checkpoint.load_newest(folder, ring(0))[0], ring(120))
        assert len(list(folder.iterdir())) == 3
        assert chunks(folder).keys() == named(folder)
        if count[0] <= after:
            break
    assert after > 30
    assert meta["steps"] == 2
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


def test_a_full_disk_leaves_no_chunks(tmp_path, small_chunks, monkeypatch):
    checkpoint.save_step(tmp_path, 1, tiles(ring(40)), {})
    before = chunks(tmp_path)
    for after in range(0, 20, 3):
        with dying(monkeypatch, after, OSError, for_good=False):
            checkpoint.save_step(tmp_path, 2, tiles(ring(100 + after)), {})
        assert chunks(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["step_000000000001.safetensors"]
    assert_trees_equal(checkpoint.load_newest(tmp_path, ring(0))[0], ring(40))


@pytest.mark.parametrize("how", ["gone", "cut", "altered"])
def test_a_damaged_chunk_is_passed_over_and_written_again(tmp_path, small_chunks, how):
    for steps in (1, 2):
        checkpoint.save_step(tmp_path, steps, tiles(ring(40 * steps)), {"steps": steps})
    first, second = [set(checkpoint._read_head(path).tensors["['content']"]["chunks"]) for path in sorted(tmp_path.glob("step_*"))]
    chunk = tmp_path / "chunks" / max(second - first)
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes({"gone": b"", "cut": data[:100], "altered": data}[how])
    if how == "gone":
        chunk.unlink()
    assert not checkpoint.newest_is_whole(tmp_path)
    assert checkpoint.newest_meta(tmp_path) == {"steps": 2}
    with pytest.warns(
        UserWarning, match=r"the checksum of content does not match, .*chunks/\w{64} was altered, or is gone; trying"
    ):
        loaded, meta = checkpoint.load_newest(tmp_path, ring(0))
    assert meta == {"steps": 1}
    assert_trees_equal(loaded, ring(40))
    checkpoint.clean(tmp_path, 1)
    checkpoint.save_step(tmp_path, 2, tiles(ring(80)), {"steps": 2})  # the same steps again
    assert checkpoint.newest_is_whole(tmp_path)
    assert_trees_equal(checkpoint.load_newest(tmp_path, ring(0))[0], ring(80))
