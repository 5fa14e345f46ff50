"""Your own network: any module whose forward gives action parameters and a value: `python examples/own_network.py [UPDATES]`."""

import sys

import torch
from torch import Tensor, nn

from purerl import PPOConfig, compile, envs, fuse, make_ppo, random
from purerl.episodes import mean_return

updates = int(sys.argv[1]) if len(sys.argv) > 1 else 200
torch.set_num_threads(1)


class Residual(nn.Module):
    """A shared torso with a skip connection and layer norm."""

    def __init__(self, n_obs: int, n_actions: int, width: int = 64) -> None:
        super().__init__()
        self.embed, self.hidden, self.norm = nn.Linear(n_obs, width), nn.Linear(width, width), nn.LayerNorm(width)
        self.policy, self.value = nn.Linear(width, n_actions), nn.Linear(width, 1)
        self.policy.gain, self.value.gain = 0.01, 1.0  # what the orthogonal initialisation multiplies by

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.embed(obs))
        x = self.norm(x + torch.relu(self.hidden(x)))
        return self.policy(x), self.value(x).squeeze(-1)


env = envs.make("Acrobot-v1")
with torch.device("meta"):  # only its shapes are used: the parameters are drawn from the key
    net = Residual(6, 3)
init, step = fuse(make_ppo(env.spec, PPOConfig(total_steps=updates * 512), net), env)

state, step = init(random.key(0)), compile(step)
for i in range(1, updates + 1):
    state, info = step(state)
    if i % 20 == 0 or i == updates:
        print(f"{i * 512:>7} steps  return {mean_return(state.episodes):7.1f}  entropy {info['entropy']:.2f}")
