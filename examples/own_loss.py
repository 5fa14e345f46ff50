"""Your own algorithm from the kernels: policy gradient with a V-trace critic.

python examples/own_loss.py [UPDATES]                            # in a loop of its own
purerl train own_loss:make_vtrace --env CartPole-v1 --seeds 4 --steps 500000 --lr 3e-4,1e-3 --out runs/mine  # in examples/
"""

import sys
from dataclasses import dataclass

import torch
from tensordict import TensorClass, TensorDict

from purerl import Algorithm, EnvSpec, compile, distributions, envs, fuse, losses, nets, optim, random
from purerl import config as cfg
from purerl.episodes import mean_return


@dataclass(frozen=True)
class VTraceConfig:
    n_envs: int = cfg.count(16, "parallel environments a seed")
    n_steps: int = cfg.count(16, "steps in each environment between updates")
    lr: float = cfg.number(1e-3, "learning rate")
    gamma: float = cfg.number(0.99, "discount", high=1.0)
    ent_coef: float = cfg.number(0.01, "weight of the entropy bonus")


class State(TensorClass):
    params: TensorDict
    opt: TensorDict
    hyper: TensorDict


def make_vtrace(spec: EnvSpec, config: VTraceConfig | None = None) -> Algorithm:
    config = config or VTraceConfig()
    dist = distributions.for_space(spec.action_space)
    with torch.device("meta"):
        net = nets.ActorCritic(spec.observation_space, spec.action_space, (64, 64), "tanh", shared=False)

    def optimizer(lr):
        return optim.chain(optim.clip_by_global_norm(0.5), optim.adam(lr))

    def init(key, hyper={}):  # noqa: B006
        params = nets.init(net, key)
        numbers = cfg.start(cfg.sweepable(config), hyper, key.device)  # those that are swept in place of the config's
        return State(params=params, opt=optimizer(numbers["lr"]).init(params), hyper=numbers)

    def act(params, inputs, carry, noise):
        logits, _ = nets.apply(net, params, inputs.obs)
        action = dist.sample(logits, noise)
        return action, TensorDict(log_prob=dist.log_prob(logits, action)), carry

    def mode(params, inputs, carry):
        return dist.mode(nets.apply(net, params, inputs.obs)[0]), carry

    def loss(params, batch, hyper):
        obs = torch.cat([batch.inputs.obs, batch.last.obs[None]])
        logits, values = (x.unflatten(0, obs.shape[:2]) for x in nets.apply(net, params, obs.flatten(0, 1)))
        log_prob = dist.log_prob(logits[:-1], batch.action)
        discounts, cut = hyper["gamma"] * (~batch.terminated).float(), batch.terminated | batch.truncated
        log_rhos = log_prob.detach() - batch.extras["log_prob"]
        targets, advantages = losses.vtrace(batch.reward, discounts, cut, values.detach(), log_rhos)
        actor, critic = losses.policy_gradient_loss(log_prob, advantages), losses.value_loss(values[:-1], targets)
        return losses.masked_mean(actor + 0.5 * critic - hyper["ent_coef"] * dist.entropy(logits[:-1]), batch.valid)

    def update(state, batch):
        grads, value = torch.func.grad_and_value(loss)(state.params, batch, state.hyper)
        updates, opt = optimizer(state.hyper["lr"]).update(grads, state.opt, state.params)
        return State(params=optim.apply_updates(state.params, updates), opt=opt, hyper=state.hyper), TensorDict(loss=value)

    return Algorithm(
        init,
        act,
        update,
        mode,
        dist.draw,
        spec,
        config.n_envs,
        config.n_steps,
        acting=lambda state: state.params,  # all that acting needs
        hyper=cfg.sweepable(config),
        config=config,
    )


if __name__ == "__main__":
    n_updates = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    torch.set_num_threads(1)
    env = envs.make("CartPole-v1")
    init, step = fuse(make_vtrace(env.spec), env)
    state, step = init(random.key(0)), compile(step)
    for i in range(1, n_updates + 1):
        state, info = step(state)
        if i % 100 == 0 or i == n_updates:
            print(f"{i * 256:>7} steps  return {mean_return(state.episodes):6.1f}  loss {info['loss']:.3f}")
