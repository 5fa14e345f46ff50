"""A replay that there is no room for is told with figures, before anything is made or written."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from training.test_donated import DQN, interrupt

from purerl import DQNConfig, envs, make_dqn, make_ppo, storage, training
from purerl.cli import main
from purerl.training import room


def test_what_a_lane_holds_is_told_without_making_it():
    spec = envs.make("CartPole-v1").spec
    what = room.held(make_dqn(spec, DQNConfig(capacity=1_000_000_000, prioritized=True)))
    rows = 1_000_000_001
    assert what.most == f"replay.steps.content.memory.obs, float32 [{rows}, 4]"
    assert rows * (16 + 8 + 4 + 1 + 4) < what.size < rows * (16 + 8 + 4 + 1 + 4.6)
    assert room.held(make_ppo(spec)) == (0, "")


def test_a_replay_larger_than_memory_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    asked = []

    def available(device):
        asked.append(device)
        return 500_000_000

    monkeypatch.setattr(room, "available_memory", available)
    training.plan("dqn", "CartPole-v1", 1, 20_000, {"capacity": 10_000_000})
    wrong = r"memory: 2 lanes of replay.steps.content.memory.obs, float32 \[10000001, 4\], and what goes with it, "
    with pytest.raises(
        storage.RoomError, match=wrong + r"take 1\.11 GB while they are made, but cpu has 0\.50 GB available; files"
    ):
        training.plan("dqn", "CartPole-v1", 2, 20_000, {"capacity": 10_000_000})
    assert set(asked) == {"cpu"}
    monkeypatch.setattr(room, "free_disk", lambda folder: 800_000_000)
    training.plan("dqn", "CartPole-v1", 2, 20_000, {"capacity": 10_000_000}, replay_folder=tmp_path)
    wrong = r"^replay_folder: 3 lanes of replay.*, take 1\.11 GB, but the disk of /.* has 0\.80 GB of room$"
    with pytest.raises(storage.RoomError, match=wrong):
        training.plan("dqn", "CartPole-v1", 3, 20_000, {"capacity": 10_000_000}, replay_folder=tmp_path)


def test_memory_that_is_gone_when_a_run_is_resumed(tmp_path, monkeypatch, uncompiled):
    run = training.plan("dqn", "CartPole-v1", 1, 160, DQN)
    training.prepare(tmp_path, run)
    interrupt(run, tmp_path, 80)
    monkeypatch.setattr(room, "available_memory", lambda device: 1000)
    result = CliRunner().invoke(main, ["resume", str(tmp_path)])
    assert result.exit_code == 1
    assert (
        "Error: memory: 1 lane of replay.steps.content.memory.obs, float32 [66, 4], and what goes with it, take 0.00 GB"
        in result.output
    )
    assert not (tmp_path / "error.log").exists()


def test_a_disk_that_cannot_hold_the_checkpoints_is_told_before_training(tmp_path, monkeypatch, uncompiled):
    flags = [x for name, value in DQN.items() for x in (f"--{name.replace('_', '-')}", str(value).strip("(,)"))]
    command = ["train", "dqn", "--env", "CartPole-v1", "--steps", "160", *flags, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(room, "free_disk", lambda folder: 1000)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "Error: out: checkpoints hold 1 lane of replay.steps.content.memory.obs, float32 [66, 4], and" in result.output
    assert f"but the disk of {tmp_path / 'run'} has 0.00 GB of room; checkpoint_replay = no leaves it out" in result.output
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "error.log").exists()
    monkeypatch.setattr(room, "free_disk", lambda folder: 3000)  # more than it takes
    assert CliRunner().invoke(main, command).exit_code == 0
    bare = [*command[:-1], str(tmp_path / "bare"), "--checkpoint-replay", "no"]
    monkeypatch.setattr(room, "free_disk", lambda folder: 0)
    assert CliRunner().invoke(main, bare).exit_code == 0


def test_what_checkpoints_have_of_it_needs_no_room_again(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "chunks").mkdir(parents=True)
    (tmp_path / "checkpoints" / "chunks" / "one").write_bytes(bytes(700))
    monkeypatch.setattr(room, "free_disk", lambda folder: 300)
    room.check_checkpoints(room.Held(500, "x"), 2, tmp_path, None)
    with pytest.raises(storage.RoomError, match="checkpoints hold 2 lanes of x"):
        room.check_checkpoints(room.Held(501, "x"), 2, tmp_path, None)
    with pytest.raises(storage.RoomError, match=r"up to .* with replay_folder, but"):  # on the same disk
        room.check_checkpoints(room.Held(500, "x"), 2, tmp_path, str(tmp_path / "replay"))
    monkeypatch.setattr(room, "there", lambda folder: Path("/dev/shm") if folder.name == "replay" else tmp_path)
    room.check_checkpoints(room.Held(500, "x"), 2, tmp_path, str(tmp_path / "replay"))
