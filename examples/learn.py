"""The learning runs of the results page: `python examples/learn.py [NAME...]`, of all if none is named.

Each is left in `runs/learn/ENVIRONMENT/ALGORITHM`, and goes on there where an earlier call has ended. Its final return is printed
beside its bar; `examples/results.py` makes the page of all that is there.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from purerl import plot, training

ROOT = Path("runs/learn")
NEVER = -1e9
GYMNAX = {"sticky_action_prob": 0.0, "difficulty_ramping": False}


class Learning(NamedTuple):
    """What is learnt: by so many seeds for so many steps each; which mean is asked of all, and what of every seed."""

    algo: str
    env: str
    seeds: int
    steps: int
    asked: float
    every: float = NEVER
    options: dict[str, Any] = {}
    place: str = ""
    config: dict[str, Any] = {}
    eval_every: int = 0  # by ten deterministic episodes, whose mean then counts

    @property
    def folder(self) -> Path:
        return ROOT / (self.place or self.env.replace("/", "-")) / self.algo

    @property
    def column(self) -> str:
        return "Evaluation/ReturnAverage" if self.eval_every else "ReturnAverage"


CONTROL = {
    "CartPole-v1": {"ppo": 485, "a2c": 450, "dqn": 488, "c51": 480, "qrdqn": 480, "rainbow": 480, "pqn": 495},
    "Acrobot-v1": {"ppo": -90, "dqn": -90, "c51": -90, "qrdqn": -90, "rainbow": -90, "pqn": -90},
}
EVERY = {("ppo", "CartPole-v1"): 400, ("a2c", "CartPole-v1"): 400}
PENDULUM = {"sac": -160, "td3": -160, "ddpg": -180, "redq": -160, "droq": -160, "tqc": -160, "crossq": -160, "xqc": -160}
CHEETAH = {"sac": 6000, "td3": 5000, "ddpg": 4500}
LIMITS = {"Freeway": 2500}  # steps of an episode with gymnax's protocol, where they are not 1,000
GAMES = {  # with PureJaxQL's and gymnax's protocol, which PPO is the mark for; and with the original one and its six actions
    "gymnax": {"Breakout": 28, "Asterix": 15, "Freeway": 55, "SpaceInvaders": 131},
    "minatar": {"Breakout": 10, "Asterix": 17, "Freeway": 50, "SpaceInvaders": 44, "Seaquest": 20},
}

WITH_REPLAY = ("Breakout", "Asterix", "SpaceInvaders")  # the original games that DQN and Rainbow learn, for fewer frames


def game(algo: str, protocol: str, name: str, steps: int, asked: float, **config: Any) -> Learning:
    env = f"MinAtar/{name}-{'v1' if protocol == 'gymnax' else 'v0'}"
    options = {**GYMNAX, "max_episode_steps": LIMITS.get(name, 1000)} if protocol == "gymnax" else {}
    return Learning(algo, env, 5, steps, asked, options=options, place=f"{protocol}-{name}", config=config)


RUNS = {
    **{
        f"{env.split('-')[0].lower()}-{algo}": Learning(algo, env, 16, 500_000, asked, EVERY.get((algo, env), NEVER))
        for env, bars in CONTROL.items()
        for algo, asked in bars.items()
    },
    "pendulum-ppo": Learning("ppo", "Pendulum-v1", 8, 1_000_000, -250),
    **{f"pendulum-{algo}": Learning(algo, "Pendulum-v1", 16, 20_000, asked, eval_every=5_000) for algo, asked in PENDULUM.items()},
    "mountaincarcontinuous-sac": Learning("sac", "MountainCarContinuous-v0", 16, 100_000, 90),
    **{
        f"halfcheetah-{algo}": Learning(algo, "HalfCheetah-v5", 3, 200_000, asked, eval_every=10_000)
        for algo, asked in CHEETAH.items()
    },
    "halfcheetah-crossq": Learning(  # at a quarter of the paper's width
        "crossq", "HalfCheetah-v5", 3, 200_000, 9000, config={"critic_hidden": (512, 512)}, eval_every=10_000
    ),
    "pong-dqn": Learning("dqn", "ALE/Pong-v5", 1, 10_000_000, 19),
    "halfcheetah-ppo": Learning("ppo", "HalfCheetah-v5", 3, 1_000_000, 1400),
    **{
        f"{protocol}-{name.lower()}-pqn": game("pqn", protocol, name, 10_000_000 if protocol == "gymnax" else 5_000_000, asked)
        for protocol, games in GAMES.items()
        for name, asked in games.items()
    },
    **{
        f"minatar-{name.lower()}-{algo}": game(algo, "minatar", name, 1_000_000, GAMES["minatar"][name], replay_ratio=ratio)
        for algo, ratio in (("dqn", 32.0), ("rainbow", 8.0))  # DQN updates once a frame, as in the paper
        for name in WITH_REPLAY  # whose bar is where the paper's DQN ends
    },
}


def learn(it: Learning) -> tuple[float, float]:
    """The mean over seeds of the last returns, and the worst one, of a run that is begun or gone on with."""
    if not (it.folder / "config.json").exists():
        evaluating = training.Evaluating(eval_every=it.eval_every)
        run = training.plan(it.algo, it.env, it.seeds, it.steps, it.config, env_options=it.options, evaluating=evaluating)
        training.prepare(it.folder, run)
    training.train(training.load_run(it.folder), it.folder, resume=(it.folder / "checkpoints").exists())
    _, values = plot.read_curves(it.folder, it.column)[""]
    return values[:, -1].mean(), values[:, -1].min()


def main(names: list[str]) -> int:
    unknown = set(names) - set(RUNS)
    if unknown:
        sys.exit(f"no such run: {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    failed = 0
    for name in names or RUNS:
        it = RUNS[name]
        mean, worst = learn(it)
        passed = mean >= it.asked and worst > it.every
        failed += not passed
        print(
            f"{name:28} mean {mean:8.1f}  worst seed {worst:8.1f}  asked {it.asked:g}  {'ok' if passed else 'FAILED'}", flush=True
        )
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
