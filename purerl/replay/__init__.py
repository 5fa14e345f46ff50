"""Replay as state: pure functions over rings of steps and over what chooses among them, each usable alone."""

from purerl.replay.replays import Replay, ReplayState, Sample, make_prioritized, make_uniform
from purerl.replay.steps import Added, Observations, Steps, Transitions, frames, transitions, whole

__all__ = [
    "Added",
    "Observations",
    "Replay",
    "ReplayState",
    "Sample",
    "Steps",
    "Transitions",
    "frames",
    "make_prioritized",
    "make_uniform",
    "transitions",
    "whole",
]
