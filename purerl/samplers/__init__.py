"""Samplers: where batches come from when the environment is not pure; one interface, and an arrangement of processes each."""

from purerl.samplers.arrangements import (
    KINDS,
    WORKERLESS,
    alternating,
    buffered,
    central,
    count_workers,
    make,
    native,
    parallel,
    serial,
    suggest,
)
from purerl.samplers.feeds import Feed
from purerl.samplers.saving import obstacle
from purerl.samplers.stepping import EnvError
from purerl.samplers.workers import WorkerError, context, settle_in, surroundings

__all__ = [
    "KINDS",
    "WORKERLESS",
    "EnvError",
    "Feed",
    "WorkerError",
    "alternating",
    "buffered",
    "central",
    "context",
    "count_workers",
    "make",
    "native",
    "obstacle",
    "parallel",
    "serial",
    "settle_in",
    "suggest",
    "surroundings",
]
