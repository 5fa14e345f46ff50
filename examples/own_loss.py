"""Your own algorithm from the kernels: policy gradient with a V-trace critic: `python examples/own_loss.py [UPDATES]`."""

import sys

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor

from purerl import A2CConfig, Algorithm, compile, distributions, envs, fuse, losses, nets, optim, random, tree
from purerl.episodes import mean_return

updates = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
torch.set_num_threads(1)

env = envs.make("CartPole-v1")
dist = distributions.for_space(env.spec.action_space)
with torch.device("meta"):
    net = nets.ActorCritic(env.spec.observation_space, env.spec.action_space, (64, 64), "tanh", shared=False)
optimizer = optim.chain(optim.clip_by_global_norm(0.5), optim.adam(1e-3))


class State(TensorClass):
    params: TensorDict
    opt: TensorDict
    steps: Tensor


def init(key):
    params = nets.init(net, key)
    return State(params=params, opt=optimizer.init(params), steps=torch.zeros((), dtype=torch.int64))


def act(state, inputs, carry, noise):
    logits, _ = nets.apply(net, state.params, inputs.obs)
    action = dist.sample(logits, noise)
    return action, TensorDict(log_prob=dist.log_prob(logits, action)), carry


def loss(params, batch):
    obs = torch.cat([batch.inputs.obs, batch.last.obs[None]])
    logits, values = (x.unflatten(0, obs.shape[:2]) for x in nets.apply(net, params, obs.flatten(0, 1)))
    log_prob = dist.log_prob(logits[:-1], batch.action)
    discounts, cut = 0.99 * (~batch.terminated).float(), batch.terminated | batch.truncated
    log_rhos = log_prob.detach() - batch.extras["log_prob"]
    targets, advantages = losses.vtrace(batch.reward, discounts, cut, values.detach(), log_rhos)
    policy = losses.policy_gradient_loss(log_prob, advantages)
    total = policy + 0.5 * losses.value_loss(values[:-1], targets) - 0.01 * dist.entropy(logits[:-1])
    return losses.masked_mean(total, batch.valid)


def update(state, batch):
    grads, value = torch.func.grad_and_value(loss)(state.params, batch)
    updates, opt = optimizer.update(grads, state.opt, state.params)
    params = optim.apply_updates(state.params, updates)
    return State(params=params, opt=opt, steps=state.steps + batch.reward.numel()), TensorDict(loss=value)


def mode(state, inputs, carry):
    return dist.mode(nets.apply(net, state.params, inputs.obs)[0]), carry


algo = Algorithm(init, act, update, mode, dist.draw, lambda n_envs: TensorDict(), env.spec, A2CConfig())
fused_init, step = fuse(algo, env, n_envs=16, n_steps=16)
state, step = fused_init(random.key(0)), compile(step)
for i in range(1, updates + 1):
    state, info = step(state)
    if i % 100 == 0 or i == updates:
        print(f"{state.algo.steps:>7} steps  return {mean_return(state.episodes):6.1f}  loss {info['loss']:.3f}")
print(f"{len(tree.leaves(state))} tensors are all there is")
