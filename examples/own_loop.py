"""A training loop of your own, with no algorithm object: `python examples/own_loop.py [functional|autograd] [UPDATES]`.

A feed gives batches, a loss is composed from `purerl.losses`, and the gradient is `torch.func.grad`'s, or plain autograd's.
"""

import sys

import torch

from purerl import compile, distributions, envs, losses, make_policy, nets, optim, random, samplers
from purerl.episodes import init_episodes, mean_return, record_episodes

way = sys.argv[1] if len(sys.argv) > 1 else "functional"
updates = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
N_ENVS, N_STEPS, GAMMA = 8, 32, 0.99

env = envs.host("CartPole-v1")
dist = distributions.for_space(env.spec.action_space)
net = nets.ActorCritic(env.spec.observation_space, env.spec.action_space, (64, 64), "tanh", shared=False)
policy = make_policy(env.spec, net)  # how a feed acts with it; its state are the parameters


def loss(params, batch):
    """Advantage actor-critic with GAE over a batch `[T, B]`."""
    obs = torch.cat([batch.inputs.obs, batch.last.obs[None]])
    logits, values = (x.unflatten(0, obs.shape[:2]) for x in nets.apply(net, params, obs.flatten(0, 1)))
    discounts, cut = GAMMA * (~batch.terminated).float(), batch.terminated | batch.truncated
    advantages = losses.gae(batch.reward, discounts, cut, values.detach(), 0.95)
    actor = losses.policy_gradient_loss(dist.log_prob(logits[:-1], batch.action), advantages)
    critic = losses.value_loss(values[:-1], advantages + values[:-1].detach())
    return losses.masked_mean(actor + 0.5 * critic - 0.01 * dist.entropy(logits[:-1]), batch.valid)


def functional(feed):
    """Pure: parameters and optimizer state go in and come out."""
    optimizer = optim.chain(optim.clip_by_global_norm(0.5), optim.adam(1e-3))
    params = policy.init(random.key(0))
    opt = optimizer.init(params)

    @compile
    def update(params, opt, batch):
        grads, value = torch.func.grad_and_value(loss)(params, batch)
        updates, opt = optimizer.update(grads, opt, params)
        return optim.apply_updates(params, updates), opt, value

    feed.publish(params)
    for batch in feed:
        params, opt, value = update(params, opt, batch)
        feed.publish(params)
        yield batch, value


def autograd(feed):
    """Ordinary PyTorch: the module's own parameters, `backward` and `torch.optim`."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    feed.publish(nets.parameters(net))
    for batch in feed:
        value = loss(nets.parameters(net), batch)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        feed.publish(nets.parameters(net))
        yield batch, value.detach()


if __name__ == "__main__":
    torch.set_num_threads(1)
    episodes = init_episodes(N_ENVS)
    # Any arrangement in serial's place: parallel, central, alternating, native, or buffered to collect while the loop learns.
    with samplers.serial(env, policy, N_ENVS, N_STEPS, random.key(1)) as feed:
        for i, (batch, value) in enumerate({"functional": functional, "autograd": autograd}[way](feed), start=1):
            episodes = record_episodes(episodes, batch)
            if i % 100 == 0 or i == updates:
                print(f"{i * N_ENVS * N_STEPS:>7} steps  return {mean_return(episodes):6.1f}  loss {value:.3f}", flush=True)
            if i == updates:
                break
