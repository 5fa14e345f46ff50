"""Deep reinforcement learning as pure functions in PyTorch."""

import gc
import os
import signal
import sys

_is_program = sys.argv[:1] == ["-m"] or os.path.basename("".join(sys.argv[:1])) == "purerl"  # `python -m purerl`, or the script
if _is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `cli` is there: a traceback of imports tells nobody anything
_collects = gc.isenabled()
gc.disable()  # what is imported stays: looking through it for garbage would take a quarter of the time
try:
    from purerl import distributions, envs, losses, nets, normalize, optim, random, tree
    from purerl.algos import A2CConfig, PPOConfig, make_a2c, make_ppo
    from purerl.base import Algorithm, Batch, Env, EnvSpec, Inputs, Policy
    from purerl.donation import Donated, SpentError
    from purerl.policies import make_policy
    from purerl.rollout import fuse, rollout
    from purerl.transforms import compile, iterate, scan, specialize, vmap, write
finally:
    if _collects:
        gc.enable()

__version__ = "0.1.0"

__all__ = [
    "A2CConfig",
    "Algorithm",
    "Batch",
    "Donated",
    "Env",
    "EnvSpec",
    "Inputs",
    "PPOConfig",
    "Policy",
    "SpentError",
    "compile",
    "distributions",
    "envs",
    "fuse",
    "iterate",
    "losses",
    "make_a2c",
    "make_policy",
    "make_ppo",
    "nets",
    "normalize",
    "optim",
    "random",
    "rollout",
    "scan",
    "specialize",
    "tree",
    "vmap",
    "write",
]
