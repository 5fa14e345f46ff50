"""Random histories of environments for the tests of the replay, and what can be learnt from them, found the slow way."""

import numpy as np
import torch
from tensordict import TensorDict

from purerl.base import Batch, Inputs

STACK, SIZE = 3, 2


class History:
    """What environments did: episodes that terminate, are truncated, lose a life, wait for the next batch, or break off."""

    def __init__(self, n_envs, seed, repeats=False, over=0.3):
        self.draw, self.n_envs, self.repeats, self.over = np.random.default_rng(seed), n_envs, repeats, over
        self.steps = [[] for _ in range(n_envs)]  # dicts of every step ever taken
        self.first, self.opens = np.ones(n_envs, bool), np.ones(n_envs, bool)
        self.stacks = [None] * n_envs
        self.count = 0

    def _stack(self, b, opens):
        self.count += 1
        frame = self.draw.integers(1, 256, (SIZE, SIZE)).astype(np.uint8)
        if opens:
            older = [frame if self.repeats else np.zeros_like(frame)] * (STACK - 1)
            return np.stack([*older, frame])
        return np.stack([*self.stacks[b][1:], frame])

    def batch(self, n_steps, breaks=False):
        """The next batch `[n_steps, n_envs]`; a worker may have been replaced before it."""
        rows = []
        for b in range(self.n_envs):
            if breaks and self.draw.random() < 0.5:
                self.first[b] = self.opens[b] = True
                self.stacks[b] = None
        for _ in range(n_steps):
            row = []
            for b in range(self.n_envs):
                before = self.steps[b][-1] if self.steps[b] else None
                waits = before is not None and before["over"] and not self.opens[b]
                stack = self.stacks[b] if waits else self._stack(b, self.opens[b])
                if waits and before["valid"]:
                    stack = self._stack(b, False)  # the final observation
                over = not waits and self.draw.random() < self.over
                kind = self.draw.integers(3) if over else 3  # terminated, truncated, a lost life
                step = {
                    "obs": float(self.count),
                    "stack": stack,
                    "action": int(self.draw.integers(4)),
                    "reward": 0.0 if waits else float(self.draw.normal()),
                    "terminated": kind in (0, 2),
                    "truncated": kind == 1,
                    "valid": not waits,
                    "first": bool(self.first[b]),
                    "opens": bool(self.opens[b]),
                    "over": kind in (0, 1) or waits,
                }
                self.stacks[b] = stack
                goes_on_waiting = waits and self.draw.random() < 0.3
                self.first[b] = kind == 2 or (waits and not goes_on_waiting)
                self.opens[b] = waits and not goes_on_waiting
                self.steps[b].append(step)
                row.append(step)
            rows.append(row)

        def of(name, dtype=None):
            return torch.tensor(np.array([[step[name] for step in row] for row in rows]), dtype=dtype)

        obs, zeros = of("obs", torch.float32)[..., None], torch.zeros(n_steps, self.n_envs)
        inputs = Inputs(obs=TensorDict(x=obs, image=of("stack")), prev_action=zeros.long(), prev_reward=zeros, first=of("first"))
        return Batch(
            inputs=inputs,
            action=of("action"),
            reward=of("reward", torch.float32),
            terminated=of("terminated"),
            truncated=of("truncated"),
            valid=of("valid"),
            extras=TensorDict(),
            carry=TensorDict(),
            last=Inputs(obs=TensorDict(), prev_action=zeros[0], prev_reward=zeros[0], first=zeros[0]),
            episode=TensorDict(game_start=of("opens")),
        )

    def known(self, b, t):
        """Whether a step is a transition whose next observation is known."""
        steps = self.steps[b]
        links = t < len(steps) - 1 and (steps[t]["terminated"] or not steps[t + 1]["opens"])
        return steps[t]["valid"] and links

    def sequences(self, n_slots, length, period):
        """By (environment, first step): the steps of the sequences that the last `n_slots` slots hold, each with those before and
        behind."""
        found = {}
        for b, steps in enumerate(self.steps):
            for t in range(max(0, len(steps) - n_slots), len(steps) - length):
                if t % period == 0 and all(self.known(b, k) for k in range(t, t + length)):
                    found[b, t] = [steps[max(0, t - 1)], *steps[t : t + length + 1]]
        return found

    def transitions(self, n_slots, n, gamma):
        """By (environment, step): the n-step transitions that the last `n_slots` slots hold, found step by step."""
        found = {}
        for b, steps in enumerate(self.steps):
            newest = len(steps) - 1

            def known(t, b=b):
                return self.known(b, t)

            for t in range(max(0, len(steps) - n_slots), newest):
                if not known(t):
                    continue
                reward, k, alive = 0.0, 0, True
                while k < n and alive and known(t + k):
                    reward += gamma**k * steps[t + k]["reward"]
                    alive = not (steps[t + k]["terminated"] or steps[t + k]["truncated"])
                    k += 1
                discount = 0.0 if steps[t + k - 1]["terminated"] else gamma**k
                found[b, t] = {"step": steps[t], "reward": reward, "discount": discount, "next": steps[t + k]}
        return found
