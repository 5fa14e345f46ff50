"""Samplers: where batches come from when the environment is not pure; one interface, and an arrangement of processes each."""

from purerl.samplers.feeds import Feed, alternating, central, native, parallel, serial
from purerl.samplers.stepping import EnvError
from purerl.samplers.workers import WorkerError

__all__ = ["EnvError", "Feed", "WorkerError", "alternating", "central", "native", "parallel", "serial"]
