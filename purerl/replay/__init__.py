"""Replay as state: pure functions over rings of steps and over what chooses among them, each usable alone."""
