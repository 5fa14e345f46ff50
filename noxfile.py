"""`nox -s demo`, `tests`, `lint`, `bench`, `gpu`, `learn`: each sets up its own environment."""

import shutil
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.options.sessions = ["lint", "tests"]


PEERS = {  # each in an environment of its own, for `bench`
    "jax": ("flashbax==0.1.3", "rejax==0.1.3", "gymnax<0.1", "jax==0.10.2", "jaxlib==0.10.2"),
    "torchrl": ("torchrl==0.14.1", "torch==2.14.1"),  # its C++ extension does not load with torch 2.13
}


def install(session: nox.Session, extras: str) -> None:
    session.install("-c", "constraints.txt", f".[{extras}]")


@nox.session
def demo(session: nox.Session) -> None:
    """Train 16 seeds of PPO on CartPole and draw the curve: runs/demo/curve.png."""
    install(session, "plot")
    session.run("python", "-c", "import shutil; shutil.rmtree('runs/demo', ignore_errors=True)")
    run = "purerl train ppo --env CartPole-v1 --seeds 16 --steps 500000 --out runs/demo --plot runs/demo/curve.png"
    session.run(*run.split())


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite; `nox -s tests -- -k random` passes arguments on to pytest."""
    install(session, "test")
    session.run("pytest", *(session.posargs or ["-n", "2"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint and types."""
    session.install("-c", "constraints.txt", ".[lint]")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


@nox.session
def bench(session: nox.Session) -> None:
    """Speed against the peers and the floors; `nox -s bench -- -k cartpole --scale 0.2` measures less, `--benchmark-compare` beside
    the run before. Peers that cannot be installed are left out."""
    install(session, "bench")
    for name, packages in PEERS.items():
        folder = Path(".nox/peers", name)
        if folder.exists():
            continue
        session.run(sys.executable, "-m", "venv", str(folder), external=True)
        try:
            session.run(str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *packages, external=True)
        except CommandFailed:
            shutil.rmtree(folder)
    session.run("pytest", "tests/bench", "--benchmark-autosave", "--benchmark-storage=file://.benchmarks", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """That a GPU computes the same, and how fast; without one, small sizes on the CPU."""
    install(session, "atari,plot")
    session.run("python", "examples/bench_gpu.py")


@nox.session
def learn(session: nox.Session) -> None:
    """Full learning runs, and the page of all there are; `nox -s learn -- cartpole-ppo` runs one of them, or goes on with it."""
    install(session, "mujoco,plot")
    try:
        session.run("python", "examples/learn.py", *session.posargs)
    finally:  # the page shows what falls short as well
        session.run("python", "examples/results.py")
