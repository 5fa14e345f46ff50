import builtins
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import assert_trees_equal
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
    checkpoint.save(path, [state()], {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r": the checksum does not match, the file was altered$"):
        checkpoint.load(path, state())
    checkpoint.save(path, [state()], {})
    with pytest.raises(CheckpointError, match=r": \['a'\] is torch.float32 \[2, 3\], but torch.float32 \[5\] was expected$"):
        checkpoint.load(path, state().set("a", torch.zeros(5)))
    with pytest.raises(CheckpointError, match=r": \['z'\] is missing$"):
        checkpoint.load(path, state().set("z", torch.zeros(5)))
    monkeypatch.setattr(checkpoint, "VERSION", 4)
    with pytest.raises(CheckpointError, match=r": version 3; this purerl reads version 4$"):
        checkpoint.load(path, state())


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


def peak_growth(f):
    """Bytes by which this process was larger than before, at most, while `f` ran (Linux)."""
    status = lambda name: int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    kept = f()
    return status("VmHWM") - before, kept


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
