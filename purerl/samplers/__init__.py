"""Samplers: where batches come from when the environment is not pure."""

from purerl.samplers.serial import SerialFeed, serial

__all__ = ["SerialFeed", "serial"]
