"""What a user may do wrong ends in one line that says what is allowed, and leaves nothing behind."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import gymnasium as gym
import pytest
from click.testing import CliRunner

from purerl import algos, cli
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
        (
            ["train", "pop", "--env", "CartPole-v1", "--out", "OUT"],
            f"algorithm: 'pop' is not one of {', '.join(algos.ALGORITHMS)}; did you mean ppo?",
        ),
        (
            ["train", "ppo", "--env", "CartPol-v1", "--out", "OUT"],
            "environment: 'CartPol-v1' is not known; did you mean CartPole-v1 or CartPole-v0",
        ),
        ([*TRAIN, "--seeds", "0"], "seeds = 0 is not at least 1"),
        ([*TRAIN, "--steps", "100"], "steps = 100 is less than one batch of n_envs * n_steps = 4 * 128 = 512"),
        ([*TRAIN, "--gamma", "1.5"], "PPOConfig.gamma = 1.5 is not a number between 0.0 and 1.0"),
        ([*TRAIN, "--lr", "1e-3,-1"], "PPOConfig.lr = -1.0 is not a number at least 0.0"),
        ([*TRAIN, "--n-envs", "4,8"], "n_envs = [4, 8] cannot be swept: it shapes the program; only lr, "),
        ([*TRAIN, "--eval-every", "4,8"], "Evaluating.eval_every = [4, 8] is not an integer at least 0"),
        ([*TRAIN, "--lr", "fast"], "Invalid value for '--lr': 'fast' is not a number, nor several separated by commas"),
        ([*TRAIN, "--hidden", "64,x"], "Invalid value for '--hidden': '64,x' is not a list of whole numbers such as 64,64"),
        (
            [*TRAIN, "--n-minibatches", "7"],
            "PPOConfig.n_minibatches = 7 does not divide the batch of n_envs * n_steps = 4 * 128 = 512",
        ),
        ([*TRAIN, "--activation", "sine"], "Invalid value for '--activation': 'sine' is not one of 'tanh', 'relu', 'elu', 'silu'."),
        ([*TRAIN, "--device", "cuda"], "device = 'cuda' is not available; this machine has cpu"),
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
        (
            [*TRAIN, "--infos", "score"],
            "infos = ('score',) is for environments of the outside world, but CartPole-v1 is pure; gym:CartP",
        ),
        ([*TRAIN, "--decorrelate", "5"], "decorrelate = 5 is for environments of the outside world, but CartPole-v1 is pure"),
        ([*TRAIN, "--reset", "wait"], "reset = 'wait' is for environments of the outside world, but CartPole-v1 is pure"),
        ([*TRAIN, "--n-workers", "2"], "n_workers = 2 is for environments of the outside world, but CartPole-v1 is pure"),
        ([*TRAIN, "--timeout", "5"], "timeout = 5.0 is for environments of the outside world, but CartPole-v1 is pure"),
        ([*GYM, "--sampler", "fused"], "sampler = 'fused' is for pure environments, but CartPole-v1 is one of the outside world"),
        ([*GYM, "--sampler", "serial", "--n-workers", "2"], "n_workers = 2 is for samplers with workers, which 'serial' has not"),
        ([*GYM, "--infos", "Return"], "infos = 'Return' is reserved for the records' own figures"),
        ([*GYM, "--env-option", "a=1", "--env-option", "a=2"], "--env-option a is given twice"),
        ([*GYM, "--env-option", "a={1}"], "env_options = {'a': {1}} cannot be kept in config.json"),
        ([*TRAIN, "--hidden", "-64"], "PPOConfig.hidden = (-64,) is not a tuple of integers at least 1, such as (64, 64)"),
        ([*TRAIN, "--lr", "1e-3,0.001"], "lr = [0.001, 0.001] holds a number twice"),
        ([*TRAIN, "--gamma", "0.99,"], "'0.99,' is not a number, nor several separated by commas"),
        ([*TRAIN, "--lr", "nan"], "PPOConfig.lr = nan is not a number at least 0.0"),
        ([*TRAIN, "--threads", "-1"], "threads = -1 is not at least 0"),
        ([*TRAIN, "--seeds", "two"], "Invalid value for '--seeds': 'two' is not a valid integer"),
        (
            ["train", "ppo", "--env", "my env", "--out", "OUT"],
            "environment: 'my env' is no id such as CartPole-v1 or my_module:MyEnv-v0 (",
        ),
        (["train", "ppo", "--env", "", "--out", "OUT"], "environment: '' is no id such as CartPole-v1"),
        (
            ["train", "ppo", "--env", "worlds:Informed-v0", "--out", "OUT"],
            "cannot be made without options: TypeError: Informed.__init__() missing 1 required positional argument: 'info'",
        ),
        (
            ["train", "ppo", "--env", "ale_py:ALE/Pong-v5", "--out", "OUT"],
            "'ale_py:ALE/Pong-v5' is a raw Atari game; use ALE/Pong-v5",
        ),
        (["train", "ppo", "--env", "PongNoFrameskip-v4", "--out", "OUT"], "is a raw Atari game; use ALE/Pong-v5"),
        (["train", "ppo", "--env", "Pong-v5", "--out", "OUT"], "'Pong-v5' is not known; did you mean ALE/Pong-v5"),
        (["eval", "OUT", "--seed", "-1"], "Invalid value for '--seed': -1 is not in the range"),
        (["resume", "OUT"], "run: holds no run, there is no config.json in it"),
        (["eval", "OUT"], "run: holds no run, there is no config.json in it"),
        (["plot", "OUT"], "run: there is no such folder"),
    ],
)
def test_mistakes(args, message, tmp_path):
    result = invoke(args, tmp_path)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("False", False),
        ("false", False),
        ("True", True),
        ("None", None),
        ("null", None),
        ("3", 3),
        ("-0.5", -0.5),
        ("1_000", 1000),
        ("[1, 2]", [1, 2]),
        ("(1, 2)", (1, 2)),
        ('{"a": true}', {"a": True}),
        ("{'a': True}", {"a": True}),
        ("'7'", "7"),
        ("8x8", "8x8"),
        ("a=b", "a=b"),
        ("", ""),
        ("import os", "import os"),
    ],
)
def test_settings_are_spelled_as_in_python_or_json(text, value):
    name, found = cli._setting(f"name={text}")
    assert (name, found, type(found)) == ("name", value, type(value))


def test_an_option_reaches_the_environment(tmp_path):
    """And is the same again after config.json."""
    args = ["train", "a2c", "--env", "worlds:Painted-v0", "--env-option", "loud=False", "--env-option", "size=(3, 4)"]
    result = invoke([*args, "--steps", "80", "--hidden", "8", "--out", "OUT"], tmp_path)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["env_options"] == {"loud": False, "size": [3, 4]}
    filmed = invoke(["eval", "OUT", "--episodes", "1", "--video", str(tmp_path / "v.gif")], tmp_path)
    assert filmed.exit_code == 0, filmed.output
    assert (tmp_path / "v.gif").read_bytes()[:3] == b"GIF"


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
    assert "its state was not finite; the last good one is kept" in said
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
    assert shown.index(b"compiling, or loading") < shown.index(b"training")
    assert b"steps/s" in shown
    assert b"s left" in shown


def test_where_there_is_no_terminal_lines_say_how_far_it_is(tmp_path, monkeypatch):
    args = ["train", "a2c", "--env", "gym:CartPole-v1", "--sampler", "serial", "--steps", "16000", "--hidden", "8", "--out", "OUT"]
    monkeypatch.setattr(cli, "SAY_EVERY", 0.1)
    result = invoke(args, tmp_path)
    sampler, first, second, *others, last, _ = result.output.splitlines()
    assert sampler == "sampler: serial"
    assert first == "a2c on gym:CartPole-v1: 1 lane of 16,000 steps; compiling, or loading what was compiled before; up to a minute"
    assert second.startswith("ready after ")
    assert len(others) >= 1
    for line in (*others, last):
        assert re.fullmatch(r"[\d,]+/16,000 steps  [\d,]+ steps/s  return [\d.nan]+  \d+ s left", line), line
    assert last.startswith("16,000/16,000 steps")


def cold(tmp_path, *args):
    """A training that must compile everything."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "purerl", "train", "ppo", "--env", "CartPole-v1", "--out", str(tmp_path / "run"), *args]
    code = (
        f"import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler); os.execv(sys.executable, {command!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=env)
    assert "compiling" in child.stderr.readline()
    time.sleep(3.0)  # into the compilation
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_compiling_ends_soon_and_says_so(tmp_path, number):
    child = cold(tmp_path)
    child.send_signal(number)
    assert child.stderr.readline() == "\n"
    assert child.stderr.readline() == "ending: saving the last good state; once more ends at once\n"
    _, said = child.communicate(timeout=20)  # a compilation takes twice as long
    assert said == f"Error: interrupted; go on with: purerl resume {tmp_path / 'run'}\n"
    assert child.returncode == 1
    assert [path.stem for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000000000000"]


@pytest.mark.parametrize("imported", ["tensordict", "click"])
@pytest.mark.parametrize("program", [["-m", "purerl"], [str(Path(sys.executable).parent / "purerl")]], ids=["module", "script"])
def test_ctrl_c_during_imports_is_quiet(tmp_path, imported, program):
    (tmp_path / f"{imported}.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    listens = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (what runs in a background ignores it)
    done = subprocess.run(
        [sys.executable, *program, "list"], capture_output=True, text=True, env=env, cwd=tmp_path, preexec_fn=listens
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")  # which a shell calls 130


TWICE = """
import signal, time
from purerl import cli

signal.signal(signal.SIGINT, signal.default_int_handler)
with cli._ending_politely():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)
        print("the same one", flush=True)
        time.sleep(2 * cli.ONCE)
        signal.raise_signal(signal.SIGINT)
        print("not here", flush=True)
"""


def test_the_second_ctrl_c_ends_at_once():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "the same one\n"), done.stderr


def test_the_resumption_of_a_finished_run_says_that_it_is(tmp_path):
    args = ["train", "a2c", "--env", "CartPole-v1", "--steps", "3200", "--hidden", "8", "--out", "OUT"]
    assert invoke(args, tmp_path).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    result = invoke(["resume", "OUT"], tmp_path)
    assert result.exit_code == 0
    assert "is finished, all its 3,200 steps are taken" in " ".join(result.output.split())
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_what_nobody_expected_is_named_and_its_traceback_kept(tmp_path, monkeypatch):
    def train(*args):
        error = KeyError("boom")
        error.add_note("the run up to there is saved")
        raise error

    monkeypatch.setattr(cli.training, "train", train)
    result = invoke([*TRAIN, "--steps", "1024"], tmp_path)
    assert result.exit_code == 1
    out = tmp_path / "run"
    assert f"Error: KeyError: 'boom'\nits traceback is in {out / 'error.log'}\nthe run up to there is saved" in result.output
    assert result.output.rstrip().endswith(f"go on with: purerl resume {out}")
    assert "KeyError: 'boom'" in (out / "error.log").read_text()


def test_threads_of_others_are_no_reason_to_end_their_process(tmp_path, monkeypatch):
    def train(*args):
        raise KeyError("boom")

    monkeypatch.setattr(cli.training, "train", train)
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert invoke([*TRAIN, "--steps", "1024"], tmp_path).exit_code == 1
    finally:
        done.set()
        thread.join()
    assert not ended


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
    assert " ".join(algos.ALGORITHMS) in output
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


def test_a_video_that_cannot_be_is_refused_before_anything_is_played(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.training, "load_run", lambda folder: None)
    result = invoke(["eval", "OUT", "--video", str(tmp_path / "film")], tmp_path)
    assert result.exit_code == 1
    assert "film does not end in .mp4 or .gif" in " ".join(result.output.split())
    monkeypatch.setitem(sys.modules, "moviepy", None)
    result = invoke(["eval", "OUT", "--video", str(tmp_path / "film.mp4")], tmp_path)
    assert 'pip install "purerl[video]"' in " ".join(result.output.split())


@pytest.mark.parametrize(("text", "number"), [("1e6", 1_000_000), ("1_000", 1000), ("12", 12)])
def test_whole_numbers_as_people_write_them(text, number):
    assert cli.COUNT.convert(text, None, None) == number


@pytest.mark.parametrize("text", ["1.5", "1e-3", "many", "1e400"])
def test_what_is_no_whole_number(text):
    with pytest.raises(click.BadParameter):
        cli.COUNT.convert(text, None, None)
