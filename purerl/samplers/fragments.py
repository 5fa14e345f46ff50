"""The memory of one fragment, which environments and policy write step by step, private or shared between processes."""

import math
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from purerl import autoreset, spaces, tree
from purerl.base import Algorithm, Batch, Inputs, Policy
from purerl.nets import check_carry
from purerl.spaces import blank_inputs, env_actions
from purerl.transforms import shapes as shapes_of
from purerl.transforms import trace, vmap

# What is kept from before each step and after the last one, [T + 1, S, B, ...]: where a fragment ends, the next one begins.
LASTING = ("obs", "action", "reward", "first", "game_start", "carry")


class Plan(NamedTuple):
    """What a fragment holds. `S` seeds, each with `B` environments, act in tiles of `P` environments.

    A tile is always of the same size (the last one is padded) and an environment always at the same place of the same tile, whoever
    computes it: so every arrangement of processes computes the same bits.

    Attributes:
        n_steps, n_seeds, n_envs, tile: T, S, B, P.
        shapes: for each name the shape and dtype of its leaves.
        structures: of `obs`, `action`, `noise`, `carry` and `extras`.
        acting: structure of what acting needs of the policy's state.
        used: for each leaf of it, whether acting depends on it.
        leaf_shapes: of its leaves, `S` apart.
        infos: names of the environment's infos that are kept.
    """

    n_steps: int
    n_seeds: int
    n_envs: int
    tile: int
    shapes: dict[str, list[tuple[tuple[int, ...], torch.dtype]]]
    structures: dict[str, Any]
    acting: Any
    used: list[bool]
    leaf_shapes: list[tuple[torch.Size, torch.dtype]]
    infos: tuple[str, ...]

    def tiles(self, columns: range) -> range:
        """The tiles that hold some of these environments."""
        return range(columns.start // self.tile, -(-columns.stop // self.tile))


def plan(policy: Algorithm | Policy, keys: Tensor, n_envs: int, n_steps: int, n_workers: int, infos: tuple[str, ...]) -> Plan:
    """Lay out the fragments of a policy."""
    n_seeds = len(keys)
    tile = max(4, -(-n_envs // 4))  # fewer waste the matrix products, more leave workers with padding
    padded = -(-n_envs // tile) * tile
    example = policy.acting(shapes_of(policy.init, keys[0]))
    acting = [torch.zeros(x.shape, dtype=x.dtype)[None].expand(n_seeds, *x.shape) for x in tree.leaves(example)]
    seen = blank_inputs(policy.spec, tile)
    noise = vmap(policy.draw)(torch.zeros((tile, 2), dtype=torch.int32))
    lanes = [tree.map(lambda x: x[None].expand(n_seeds, *x.shape), x) for x in (seen, policy.carry(tile), noise)]
    whole, choose = tree.structure(example), policy.act
    act = vmap(lambda acting, *args: choose(tree.unflatten(whole, acting), *args))
    traced = trace(act, acting, *lanes)
    action, extras, _ = tree.unflatten(traced.structure, traced.results)
    sent = spaces.env_actions(policy.spec.action_space, seen.prev_action)

    def steps(x: Any, n: int, lead: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [((n, n_seeds, padded, *leaf.shape[lead:]), leaf.dtype) for leaf in tree.leaves(x)]

    flag, number = torch.zeros(1, dtype=torch.bool), torch.zeros(1)
    shapes: dict[str, list[tuple[tuple[int, ...], torch.dtype]]] = {
        "obs": steps(seen.obs, n_steps + 1, 1),
        "action": steps(action, n_steps + 1, 2),
        "reward": steps(number, n_steps + 1, 1),
        "first": steps(flag, n_steps + 1, 1),
        "game_start": steps(flag, n_steps + 1, 1),
        "carry": steps(policy.carry(tile), n_steps + 1, 1),
        "noise": steps(noise, n_steps, 1),
        "sent": steps(sent, n_steps, 1),
        "extras": steps(extras, n_steps, 2),
        **{name: steps(flag, n_steps, 1) for name in ("terminated", "truncated", "valid", "game_end")},
        "raw_reward": steps(number, n_steps, 1),
        "infos": steps([number] * len(infos), n_steps, 1),
        "seeds": steps(number.long(), 1, 1),
        "heartbeat": [((n_workers,), torch.int64)],
    }
    used = traced.used[: len(acting)]
    packed, _ = tree.pack([x for x, is_used in zip(acting, used, strict=True) if is_used], axes=1)
    shapes["params"] = [(tuple(x.shape), x.dtype) for x in packed.values()]
    structures = {
        "obs": tree.structure(seen.obs),
        "action": tree.structure(seen.prev_action),
        "noise": tree.structure(noise),
        "carry": tree.structure(policy.carry(tile)),
        "extras": tree.batched(tree.structure(extras), -1),
    }
    leaf_shapes = [(x.shape[1:], x.dtype) for x in acting]
    return Plan(n_steps, n_seeds, n_envs, tile, shapes, structures, whole, list(used), leaf_shapes, infos)


def act_packed(policy: Algorithm | Policy, plan: Plan) -> Callable[..., tuple]:
    """One seed's `act` on lists of leaves: the packed parameters and a step's `obs`, `action`, `reward`, `first`, `carry`, `noise`
    go in, its `sent`, `action`, `carry` and `extras` come out."""
    unpack = _unpacker(plan)

    def act(params: list[Tensor], obs: list, action: list, reward: list, first: list, carry: list, noise: list) -> tuple:
        rest = iter(unpack(params))
        unused = (torch.zeros((), dtype=dtype, device=first[0].device).expand(shape) for shape, dtype in plan.leaf_shapes)
        leaves = [next(rest) if is_used else x for is_used, x in zip(plan.used, unused, strict=True)]
        prev_action = autoreset.previous(first[0], tree.unflatten(plan.structures["action"], action))
        inputs = Inputs(
            obs=tree.unflatten(plan.structures["obs"], obs), prev_action=prev_action, prev_reward=reward[0], first=first[0]
        )
        memory, moment = (tree.unflatten(plan.structures[name], x) for name, x in (("carry", carry), ("noise", noise)))
        chosen, extras, after = policy.act(tree.unflatten(plan.acting, leaves), inputs, memory, moment)
        check_carry(memory, after)
        sent = env_actions(policy.spec.action_space, chosen)
        return tree.leaves(sent), tree.leaves(chosen), tree.leaves(after), tree.leaves(extras)

    return act


class RolloutBuffer:
    """A fragment's memory as numpy arrays (`numpy[name]`) and, the same memory, as tensors (`torch[name]`), lists of leaves
    `[T, S, B', ...]`, where `B'` is the number of environments rounded up to whole tiles.

    Args:
        plan: what it holds.
        block: the bytes; memory of its own when omitted.
    """

    def __init__(self, plan: Plan, block: Any = None) -> None:
        self.plan = plan
        self._batch_structure: Any = None
        self.block = np.zeros(n_bytes(plan), np.uint8) if block is None else block
        self.numpy: dict[str, list[np.ndarray]] = {}
        at = 0
        for name, leaves in plan.shapes.items():
            self.numpy[name] = []
            for shape, dtype in leaves:
                kind = torch.empty(0, dtype=dtype).numpy().dtype
                array = np.frombuffer(self.block, kind, math.prod(shape), at).reshape(shape)
                self.numpy[name].append(array)
                at += _aligned(array.nbytes)
        self.torch = {name: [torch.from_numpy(x) for x in arrays] for name, arrays in self.numpy.items()}

    def begin(self) -> None:
        """Go on where the last fragment ended, with nothing ended, reset or infos seen yet."""
        for name in LASTING:
            for x in self.numpy[name]:
                x[0] = x[-1]
        for name, value in (("terminated", 0), ("truncated", 0), ("valid", 1), ("game_end", 0)):
            self.numpy[name][0][:] = value
        for name in ("first", "game_start"):
            self.numpy[name][0][1:] = False
        self.numpy["raw_reward"][0][:] = np.nan
        for x in self.numpy["infos"]:
            x[:] = np.nan

    def start(self, carry: TensorDict) -> None:
        """Forget what the last fragment left: every environment has just been reset.

        Args:
            carry: `[B]` the policy's memory before an episode.
        """
        for name in LASTING[1:]:
            for x in self.numpy[name]:
                x[-1] = 0
        for place, x in zip(self.torch["carry"], tree.leaves(carry), strict=True):
            place[-1, :, : self.plan.n_envs] = x
        for name in ("first", "game_start"):
            self.numpy[name][0][-1] = True

    def batch(self, single: bool, device: torch.device) -> Batch:
        """A copy as the batch `[S, T, B]`, or `[T, B]` of the single seed, on a device."""
        n_envs, n_steps = self.plan.n_envs, self.plan.n_steps
        before, after, last = slice(0, n_steps), slice(1, None), slice(n_steps, None)

        def take(name: str, steps: slice = slice(None)) -> list[Tensor]:
            parts = [x[steps, :, :n_envs].transpose(0, 1) for x in self.torch[name]]  # [S, T, B, ...]
            return [(x[0] if single else x).clone(memory_format=torch.contiguous_format) for x in parts]

        def inputs(steps: slice) -> list[Any]:
            (first,) = take("first", steps)
            prev_action = [autoreset.previous(first, x) for x in take("action", steps)]
            return [*take("obs", steps), *prev_action, *take("reward", steps), first]

        def moment(leaves: list[Tensor]) -> list[Tensor]:
            return [x.squeeze(0 if single else 1) for x in leaves]

        (reward,), (raw,) = take("reward", after), take("raw_reward")
        leaves = tree.leaves(
            [
                *inputs(before),
                take("action", after),
                reward,
                *(take(name) for name in ("terminated", "truncated", "valid", "extras")),
                moment(take("carry", slice(0, 1))),
                moment(inputs(last)),
                torch.where(raw.isnan(), reward, raw),
                take("game_start", before),
                *(take(name) for name in ("game_end", "infos")),
            ]
        )
        if device.type != "cpu":
            leaves = [x.pin_memory().to(device, non_blocking=True) for x in leaves]
        if self._batch_structure is None:
            self._batch_structure = self._structure_of_batch(leaves, 0 if single else 1)
        return tree.unflatten(self._batch_structure, leaves)

    def _structure_of_batch(self, leaves: list[Tensor], lanes: int) -> Any:
        """The batch's structure, whose leaves these are in order."""
        rest = iter(leaves)

        def nested(name: str) -> Any:
            return tree.unflatten(self.plan.structures[name], [next(rest) for _ in self.torch[name]])

        def inputs() -> Inputs:
            return Inputs(obs=nested("obs"), prev_action=nested("action"), prev_reward=next(rest), first=next(rest))

        batch = Batch(
            inputs=inputs(),
            action=nested("action"),
            reward=next(rest),
            terminated=next(rest),
            truncated=next(rest),
            valid=next(rest),
            extras=nested("extras"),
            carry=nested("carry"),
            last=inputs(),
            episode=TensorDict({name: next(rest) for name in ("reward", "game_start", "game_end", *self.plan.infos)}),
        )
        found, structure = tree.flatten(batch)
        assert [x.data_ptr() for x in found] == [x.data_ptr() for x in leaves]
        return tree.batched(structure, lanes)


def n_bytes(plan: Plan) -> int:
    """The size of a fragment's memory."""
    leaves = [x for leaves in plan.shapes.values() for x in leaves]
    return sum(_aligned(math.prod(shape) * torch.empty(0, dtype=dtype).element_size()) for shape, dtype in leaves)


def shared_block(plan: Plan, context: BaseContext) -> Any:
    """Memory that processes share: no name in the file system, gone with the last process that holds it."""
    return context.RawArray("b", n_bytes(plan))


def param_places(plan: Plan, params: Sequence[Tensor]) -> list[Tensor]:
    """Where in the packed parameters `[S, n]` each leaf that acting uses belongs, `[S, ...]`."""
    return _unpacker(plan)(params)


def _unpacker(plan: Plan) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """From the packed parameters to the leaves that acting uses."""
    leaves = zip(plan.leaf_shapes, plan.used, strict=True)
    _, unpack = tree.pack([torch.zeros(shape, dtype=dtype) for (shape, dtype), is_used in leaves if is_used])
    return lambda params: unpack({x.dtype: x for x in params})


def _aligned(n: int) -> int:
    return -(-n // 64) * 64
