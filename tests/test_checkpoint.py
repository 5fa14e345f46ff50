import builtins
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
    monkeypatch.setattr(checkpoint, "VERSION", 5)
    with pytest.raises(CheckpointError, match=r": version 4; this purerl reads version 5$"):
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
