"""What a user may do wrong ends in one line that says what is allowed, and leaves nothing behind."""

import contextlib
import json
import os
import pty
import subprocess
import sys

import gymnasium as gym
import pytest
from click.testing import CliRunner

from purerl.cli import main

GYM = ["train", "ppo", "--env", "gym:CartPole-v1", "--out", "OUT"]
TRAIN = ["train", "ppo", "--env", "CartPole-v1", "--out", "OUT"]


def invoke(args, tmp_path):
    result = CliRunner().invoke(main, [str(tmp_path / "run") if a == "OUT" else a for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "pop", "--env", "CartPole-v1", "--out", "OUT"], "algorithm: 'pop' is not one of a2c, ppo; did you mean ppo?"),
        (
            ["train", "ppo", "--env", "CartPol-v1", "--out", "OUT"],
            "environment: 'CartPol-v1' is not known; did you mean CartPole-v1 or CartPole-v0",
        ),
        ([*TRAIN, "--seeds", "0"], "seeds = 0 is not at least 1"),
        ([*TRAIN, "--steps", "100"], "steps = 100 is less than one batch of n_envs * n_steps = 4 * 128 = 512"),
        ([*TRAIN, "--gamma", "1.5"], "PPOConfig.gamma = 1.5 is not a number between 0.0 and 1.0"),
        ([*TRAIN, "--lr", "1e-3,-1"], "PPOConfig.lr = -1.0 is not a number at least 0.0"),
        ([*TRAIN, "--lr", "fast"], "Invalid value for '--lr': 'fast' is not a number, nor several separated by commas"),
        ([*TRAIN, "--hidden", "64,x"], "Invalid value for '--hidden': '64,x' is not a list of whole numbers such as 64,64"),
        (
            [*TRAIN, "--n-minibatches", "7"],
            "PPOConfig.n_minibatches = 7 does not divide the batch of n_envs * n_steps = 4 * 128 = 512",
        ),
        ([*TRAIN, "--activation", "sine"], "Invalid value for '--activation': 'sine' is not one of 'tanh', 'relu', 'elu', 'silu'."),
        ([*TRAIN, "--device", "cuda"], "device = 'cuda' is not available; this machine has only 'cpu'"),
        (
            ["train", "ppo", "--env", "gym:Blackjack-v1", "--out", "OUT", "--normalize-obs"],
            "normalize_obs = True needs a Box of floats",
        ),
        (
            [*TRAIN, "--sampler", "parallel"],
            "sampler = 'parallel' is for environments of the outside world, but CartPole-v1 is pure",
        ),
        ([*TRAIN, "--sampler", "fastest"], "'fastest' is not one of 'auto', 'fused', 'serial', 'parallel'"),
        ([*TRAIN, "--env-option", "longest"], "'longest' is not NAME=VALUE"),
        ([*TRAIN, "--n-workers", "-1"], "Collecting.n_workers = -1 is not an integer at least 0"),
        ([*GYM, "--sampler", "parallel", "--n-workers", "9"], "n_workers = 9 is not between 1 and n_envs = 4"),
        ([*GYM, "--sampler", "alternating", "--n-workers", "3"], "n_workers = 3 is not even, which two halves need"),
        ([*GYM, "--env-option", "colour=3"], "colour"),
        (["train", "ppo", "--env", "ALE/Pung-v5", "--out", "OUT"], "'ALE/Pung-v5' is not known; did you mean ALE/Pong-v5"),
        (["train", "ppo", "--env", "ALE/Pong-v5", "--reset", "wait", "--out", "OUT"], "reset = 'wait' needs environments"),
        (["train", "ppo", "--env", "no_such_module:Env-v0", "--out", "OUT"], "no_such_module"),
        (["resume", "OUT"], "run: holds no run ("),
        (["eval", "OUT"], "run: holds no run ("),
        (["plot", "OUT"], "run: no progress.csv with rows below it"),
    ],
)
def test_mistakes(args, message, tmp_path):
    result = invoke(args, tmp_path)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_no_mujoco(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mujoco" or "gymnasium.envs.mujoco" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    result = invoke(["train", "ppo", "--env", "HalfCheetah-v5", "--out", "OUT"], tmp_path)
    assert result.exit_code == 1
    assert 'install it with: pip install "purerl[mujoco]"' in result.output
    assert not (tmp_path / "run").exists()


class Talk(gym.Env):
    """Its actions are words."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Text(4)


def test_an_action_space_no_policy_gradient_takes(tmp_path, monkeypatch):
    monkeypatch.setitem(gym.registry, "Talk-v0", gym.envs.registration.EnvSpec("Talk-v0", Talk))
    result = invoke(["train", "ppo", "--env", "Talk-v0", "--out", "OUT"], tmp_path)
    assert result.exit_code == 1
    assert "action space: Text(" in result.output
    assert "is not Discrete, MultiDiscrete, MultiBinary or a Box of floats" in result.output


def test_a_lane_that_stops_says_so_and_the_other_goes_on(tmp_path):
    args = ["train", "a2c", "--env", "CartPole-v1", "--steps", "3200", "--hidden", "8", "--lr", "1e30,1e-3", "--out", "OUT"]
    result = invoke(args, tmp_path)
    assert result.exit_code == 1
    said = " ".join(result.output.split())
    assert "lane lr=1e+30/seed_000 stopped after" in said
    assert "its loss or its state was not finite; the last good one is kept" in said
    assert "Traceback" not in result.output
    assert (tmp_path / "run" / "lr=0.001" / "seed_000" / "progress.csv").read_text().splitlines()[-1].startswith("3200,")


def test_the_terminal_shows_that_it_compiles(tmp_path):
    screen, terminal = pty.openpty()
    args = ["train", "a2c", "--env", "CartPole-v1", "--steps", "3200", "--hidden", "8", "--out", str(tmp_path / "run")]
    child = subprocess.Popen([sys.executable, "-m", "purerl", *args], stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(screen, 4096):
            shown += part
    assert child.wait() == 0
    assert shown.index(b"compiling (once; up to a minute)") < shown.index(b"training")
    assert b"steps/s" in shown
    assert b"s left" in shown


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    result = invoke(TRAIN, tmp_path)
    assert (
        f"out: {tmp_path / 'run'} already holds a run; choose another folder, or continue it with: purerl resume" in result.output
    )
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    result = invoke([*TRAIN[:-1], str(tmp_path / "file" / "run")], tmp_path)
    assert result.exit_code == 1
    assert f"out: {tmp_path / 'file' / 'run'} cannot be written (Not a directory)" in result.output


def test_list(tmp_path):
    output = invoke(["list"], tmp_path).output
    assert "a2c ppo" in output
    assert "Acrobot-v1 CartPole-v1" in output


def test_every_config_field_is_a_flag(tmp_path):
    output = invoke(["train", "ppo", "--help"], tmp_path).output
    for flag in ("--lr", "--gae-lambda", "--normalize-obs", "--hidden", "--lr-schedule", "--target-kl"):
        assert flag in output


def test_train_plot_eval_and_video_in_a_real_terminal(tmp_path):
    def purerl(*args):
        env = {**os.environ, "SDL_VIDEODRIVER": "dummy"}
        return subprocess.run([sys.executable, "-m", "purerl", *args], capture_output=True, text=True, env=env)

    out = str(tmp_path / "run")
    trained = purerl(
        "train", "a2c", "--env", "CartPole-v1", "--steps", "3200", "--hidden", "8", "--out", out, "--plot", f"{out}/c.png"
    )
    assert trained.returncode == 0, trained.stderr
    assert "Traceback" not in trained.stderr
    assert (tmp_path / "run" / "c.png").exists()
    evaluated = purerl("eval", out, "--episodes", "2", "--video", f"{out}/v.gif")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "seed_000  return" in evaluated.stdout
    assert (tmp_path / "run" / "v.gif").read_bytes()[:3] == b"GIF"


MODULE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Mine(CartPoleEnv):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {"angle": float(obs[2])}

gym.register("Mine-v0", Mine, max_episode_steps=30)
"""


@pytest.mark.parametrize("sampler", ["auto", "serial", "parallel", "central", "alternating", "buffered"])
def test_bring_your_own_environment(tmp_path, sampler):
    """A module in a package in the working folder, as its user runs it."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "my_module.py").write_text(MODULE)
    args = ["train", "a2c", "--env", "my_package.my_module:Mine-v0", "--steps", "640", "--hidden", "8", "--infos", "angle"]
    command = [os.path.join(os.path.dirname(sys.executable), "purerl"), *args, "--sampler", sampler, "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["collecting"]["sampler"] != "auto"
    header, *rows = (tmp_path / "run" / "seed_000" / "progress.csv").read_text().splitlines()
    assert "angleAverage" in header
    assert len(rows) > 0
