"""Deep reinforcement learning as pure functions in PyTorch."""

import gc
import os
import signal
import sys

_is_program = sys.argv[:1] == ["-m"] or os.path.basename("".join(sys.argv[:1])) == "purerl"  # `python -m purerl`, or the script
if _is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `cli` is there: a traceback of imports tells nobody anything
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch takes large memory in pages of 2 MB: 500 times fewer to fill with zeros
_collects = gc.isenabled()
gc.disable()  # what is imported stays: looking through it for garbage would take a quarter of the time
try:
    from purerl import distributions, envs, losses, nets, normalize, optim, random, replay, tree
    from purerl.algos import (
        A2CConfig,
        C51Config,
        DDPGConfig,
        DQNConfig,
        PPOConfig,
        PQNConfig,
        QRDQNConfig,
        RainbowConfig,
        SACConfig,
        SACDiscreteConfig,
        TD3Config,
        make_a2c,
        make_c51,
        make_crossq,
        make_ddpg,
        make_dqn,
        make_droq,
        make_ppo,
        make_pqn,
        make_qrdqn,
        make_rainbow,
        make_redq,
        make_sac,
        make_sac_discrete,
        make_td3,
        make_tqc,
        make_xqc,
    )
    from purerl.base import Algorithm, Batch, Env, EnvSpec, Inputs, Policy
    from purerl.donation import Donated, SpentError
    from purerl.policies import make_policy
    from purerl.rollout import fuse, rollout
    from purerl.transforms import compile, iterate, repeat, scan, specialize, vmap, write
finally:
    if _collects:
        gc.enable()

__version__ = "0.1.0"

__all__ = [
    "A2CConfig",
    "Algorithm",
    "Batch",
    "C51Config",
    "DDPGConfig",
    "DQNConfig",
    "Donated",
    "Env",
    "EnvSpec",
    "Inputs",
    "PPOConfig",
    "PQNConfig",
    "Policy",
    "QRDQNConfig",
    "RainbowConfig",
    "SACConfig",
    "SACDiscreteConfig",
    "SpentError",
    "TD3Config",
    "compile",
    "distributions",
    "envs",
    "fuse",
    "iterate",
    "losses",
    "make_a2c",
    "make_c51",
    "make_crossq",
    "make_ddpg",
    "make_dqn",
    "make_droq",
    "make_policy",
    "make_ppo",
    "make_pqn",
    "make_qrdqn",
    "make_rainbow",
    "make_redq",
    "make_sac",
    "make_sac_discrete",
    "make_td3",
    "make_tqc",
    "make_xqc",
    "nets",
    "normalize",
    "optim",
    "random",
    "repeat",
    "replay",
    "rollout",
    "scan",
    "specialize",
    "tree",
    "vmap",
    "write",
]
