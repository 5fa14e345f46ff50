"""Config fields that algorithms share, each written once; a config says their defaults: `gamma: float = fields.gamma(0.99)`."""

from functools import partial

from purerl import config, nets, optim
from purerl.algos.common import PRECISIONS

n_envs = partial(config.count, help="parallel environments a seed")
n_steps = partial(config.count, help="steps in each environment between updates")
total_steps = partial(config.length, help="environment steps over which the schedules run")
lr = partial(config.number, help="learning rate")
lr_schedule = partial(config.option, help="the learning rate over the run", choices=tuple(optim.SCHEDULES))
max_grad_norm = partial(config.number, help="global gradient norm above which gradients are scaled down")
gamma = partial(config.number, help="discount", high=1.0)
gae_lambda = partial(config.number, help="trace decay of the advantage estimate", high=1.0)
vf_coef = partial(config.number, help="weight of the value loss")
ent_coef = partial(config.number, help="weight of the entropy bonus")
normalize_advantage = partial(config.setting, help="standardize the advantages that are learnt from at once")
normalize_obs = partial(config.setting, help="standardize observations by running moments")
normalize_reward = partial(config.setting, help="scale rewards by the running deviation of the return")
hidden = partial(config.counts, help="widths of the hidden layers")
activation = partial(config.option, help="of the hidden layers", choices=tuple(nets.ACTIVATIONS))
shared_torso = partial(config.setting, help="one torso for policy and value")
precision = partial(config.option, help="of the convolutions in updates", choices=tuple(PRECISIONS))
init = partial(config.option, help="initialisation of the weights", choices=tuple(nets.SCHEMES))
