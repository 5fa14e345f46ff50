"""Training runs: what a run is, its lanes on their way, what is written down meanwhile, and the loop around all of it."""

from purerl.training.loop import finished, train
from purerl.training.programs import HostState, Lanes, Runner, guard, initial_state, load_state, make_runner
from purerl.training.reports import Evaluator, Failure, Figures, Progress
from purerl.training.run import (
    Collecting,
    Evaluating,
    Run,
    as_json,
    build,
    check_device,
    lane_name,
    lanes,
    load_run,
    plan,
    prepare,
    variants,
)

__all__ = [
    "Collecting",
    "Evaluating",
    "Evaluator",
    "Failure",
    "Figures",
    "HostState",
    "Lanes",
    "Progress",
    "Run",
    "Runner",
    "as_json",
    "build",
    "check_device",
    "finished",
    "guard",
    "initial_state",
    "lane_name",
    "lanes",
    "load_run",
    "load_state",
    "make_runner",
    "plan",
    "prepare",
    "train",
    "variants",
]
