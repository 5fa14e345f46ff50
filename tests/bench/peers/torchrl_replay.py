"""TorchRL's prioritized replay in C++: sample and write back. Arguments: items, batch, turns."""

import sys

import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer
from turns import serve

n_items, batch, turns = map(int, sys.argv[1:])
CHUNK = 10_000
torch.set_num_threads(1)
buffer = TensorDictPrioritizedReplayBuffer(alpha=0.6, beta=0.4, storage=LazyTensorStorage(n_items), batch_size=batch)
steps = {
    "obs": torch.zeros(CHUNK, 4),
    "action": torch.zeros(CHUNK, dtype=torch.int64),
    "reward": torch.zeros(CHUNK),
    "done": torch.zeros(CHUNK, dtype=torch.bool),
    "next_obs": torch.zeros(CHUNK, 4),
}
for _ in range(n_items // CHUNK):
    buffer.extend(TensorDict(steps, [CHUNK]))


def turn() -> float:
    for _ in range(turns):
        sample = buffer.sample()
        buffer.update_priority(sample["index"], torch.rand(batch) + 0.01)
    return turns


turn()
serve(turn)
