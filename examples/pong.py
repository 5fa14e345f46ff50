"""PPO on Pong with CleanRL's settings, in portions that go on where the last stopped: `python examples/pong.py [FOLDER] [STEPS]`.

    python examples/pong.py runs/pong            # begins the run, or goes on with it; stop it with Ctrl-C at any time
    python examples/pong.py runs/pong 1000000    # a shorter run, for which the learning rate falls to zero sooner

Ten million steps are CleanRL's; two CPU cores take them at about 900 a second. The picture is FOLDER/curve.png, with the curve that
CleanRL publishes beside it. That one (`examples/cleanrl`) is the mean of several seeds, read off the file hms_each_game.svg of its
`ppo_atari_envpool_xla_jax`: over a run time that is taken here as steps at a constant speed, smoothed over half a million steps.
"""

import sys
from pathlib import Path

from purerl import plot, training


def say(p: training.Progress) -> None:
    print(f"\r{p.steps:>10,} of {p.total:,} steps  {p.rate:5.0f} steps/s  return {p.mean_return:6.1f}", end="", flush=True)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/pong")
    goes_on = (out / "config.json").exists()
    if not goes_on:
        steps = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000_000
        # The rest is the preset: 8 environments x 128 steps, 4 epochs of 4 minibatches, a learning rate of 2.5e-4 falling to zero.
        training.prepare(out, training.plan("ppo", "ALE/Pong-v5", 1, steps, {"precision": "bfloat16"}))
    try:
        training.train(training.load_run(out), out, resume=goes_on, report=say)
    except KeyboardInterrupt:
        print("\nsaved; the same command goes on")
    plot.plot([out, Path(__file__).parent / "cleanrl"], out / "curve.png")
    print(f"\ncurve: {out / 'curve.png'}")
