"""What follows the end of an episode, in one place: Gymnasium's NEXT_STEP. The step after it only resets.

Such a step is rewarded with nothing and ends nothing; its action did not happen, so that the policy sees none before the
observation that opens the episode.
"""

from typing import Any

import torch
from torch import Tensor

from purerl import tree
from purerl.base import Env
from purerl.transforms import vmap


def step(env: Env, state: Any, action: Any, noise: Any, done: Tensor) -> tuple[Any, Any, Tensor, Tensor, Tensor]:
    """One step of `B` environments, of which those that are `done` are reset.

    Args:
        state, action, noise: `[B]`, as the environment takes them.
        done: `[B]` bool, the step before ended an episode.

    Returns:
        The states, observations, rewards, and which episodes terminated or were truncated, `[B]` each.
    """
    stepped, obs, reward, terminated, truncated, _ = vmap(env.step)(state, action, noise)
    stepped, obs = tree.where(done, vmap(env.reset)(noise), (stepped, obs))
    return stepped, tree.map(_in_place, obs), torch.where(done, 0.0, reward), terminated & ~done, truncated & ~done


def _in_place(x: Tensor) -> Tensor:
    """Boards and images `[B, H, ...]` as they are, but in place before a program flattens them into a loop's carry.

    Otherwise it would choose between reset and step number by number, where an observation's numbers are no multiple of 16.
    """
    return torch.cat([x[:1], x[1:]]) if x.ndim > 2 else x


def previous(done: Tensor, action: Any) -> Any:
    """The previous action as the policy sees it: zero where the step only reset."""
    return tree.where(done, tree.map(torch.zeros_like, action), action)
