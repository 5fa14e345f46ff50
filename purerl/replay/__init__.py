"""Replay as state: pure functions over rings of steps and over what chooses among them, each usable alone."""

from purerl.replay.offline import from_arrays
from purerl.replay.replays import Replay, ReplayState, Sample, make_prioritized, make_uniform
from purerl.replay.sequences import (
    SequenceReplay,
    Sequences,
    SequenceSample,
    SequenceState,
    make_prioritized_sequences,
    make_uniform_sequences,
)
from purerl.replay.steps import Added, Observations, Steps, Transitions, frames, on_host, transitions, whole

__all__ = [
    "Added",
    "Observations",
    "Replay",
    "ReplayState",
    "Sample",
    "SequenceReplay",
    "SequenceSample",
    "SequenceState",
    "Sequences",
    "Steps",
    "Transitions",
    "frames",
    "from_arrays",
    "make_prioritized",
    "make_prioritized_sequences",
    "make_uniform",
    "make_uniform_sequences",
    "on_host",
    "transitions",
    "whole",
]
