"""The learning runs of the README's table: `python examples/learn.py [NAME...]`; prints each run's final return and its bar."""

import sys
import tempfile
from pathlib import Path

from purerl import plot, training

RUNS = {  # algorithm, environment, seeds, steps a seed, required mean, required of every seed
    "cartpole-ppo": ("ppo", "CartPole-v1", 16, 500_000, 485.0, 400.0),
    "cartpole-a2c": ("a2c", "CartPole-v1", 16, 500_000, 450.0, 400.0),
    "acrobot-ppo": ("ppo", "Acrobot-v1", 16, 500_000, -90.0, -500.0),
    "pendulum-ppo": ("ppo", "Pendulum-v1", 8, 1_000_000, -250.0, -2000.0),
    "cartpole-dqn": ("dqn", "CartPole-v1", 16, 500_000, 488.0, -1e9),
    "cartpole-c51": ("c51", "CartPole-v1", 16, 500_000, 480.0, -1e9),
    "cartpole-qrdqn": ("qrdqn", "CartPole-v1", 16, 500_000, 480.0, -1e9),
    "cartpole-rainbow": ("rainbow", "CartPole-v1", 16, 500_000, 480.0, -1e9),
    "cartpole-pqn": ("pqn", "CartPole-v1", 16, 500_000, 495.0, -1e9),
    **{f"acrobot-{algo}": (algo, "Acrobot-v1", 16, 500_000, -90.0, -500.0) for algo in ("dqn", "c51", "qrdqn", "rainbow", "pqn")},
    "halfcheetah-ppo": ("ppo", "HalfCheetah-v5", 3, 1_000_000, 1400.0, -1e9),
}

failed = []
for name in sys.argv[1:] or RUNS:
    algo, env, seeds, steps, bar, every = RUNS[name]
    out = Path(tempfile.mkdtemp()) / name
    run = training.plan(algo, env, seeds, steps, {})
    training.prepare(out, run)
    training.train(run, out)
    _, values = plot.read_curves(out, "ReturnAverage")[""]
    mean, worst = values[:, -1].mean(), values[:, -1].min()
    passed = mean >= bar and worst > every
    failed += [] if passed else [name]
    print(f"{name:16} mean {mean:8.1f}  worst seed {worst:8.1f}  asked {bar:g}  {'ok' if passed else 'FAILED'}", flush=True)
sys.exit(bool(failed))
