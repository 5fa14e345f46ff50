"""What Python's fork server loads once, so that workers begin with it: the libraries, and what a first compilation finds out."""

import torch
from torch._inductor import config

from purerl.samplers import pool  # noqa: F401
from purerl.transforms import specialize

config.compile_threads = 1  # a pool of compiler threads would not survive the fork
torch.set_num_threads(1)
specialize(lambda x: x + 1.0, torch.zeros(1))
