"""Config fields that algorithms share, each written once; a config says their defaults: `gamma: float = fields.gamma(0.99)`."""

from functools import partial

from purerl import config, nets, optim
from purerl.algos.common import PRECISIONS

n_envs = partial(config.count, help="parallel environments a seed")
n_steps = partial(config.count, help="steps in each environment between updates")
epochs = partial(config.count, help="passes over each batch")
n_minibatches = partial(config.count, help="minibatches a pass")
total_steps = partial(config.length, help="environment steps over which the schedules run")
lr = partial(config.number, help="learning rate")
lr_schedule = partial(config.option, help="the learning rate over the run", choices=tuple(optim.SCHEDULES))
max_grad_norm = partial(config.number, help="global gradient norm above which gradients are scaled down")
adam_eps = partial(config.number, help="Adam's epsilon")
gamma = partial(config.number, help="discount", high=1.0)
gae_lambda = partial(config.number, help="trace decay of the advantage estimate", high=1.0)
vf_coef = partial(config.number, help="weight of the value loss")
ent_coef = partial(config.number, help="weight of the entropy bonus")
normalize_advantage = partial(config.setting, help="standardize the advantages that are learnt from at once")
normalize_obs = partial(config.setting, help="standardize observations by running moments")
normalize_reward = partial(config.setting, help="scale rewards by the running deviation of the return")
hidden = partial(config.counts, help="widths of the hidden layers")
activation = partial(config.option, help="of the hidden layers", choices=tuple(nets.ACTIVATIONS))
norm = partial(config.option, help="of the hidden layers, before the activation", choices=tuple(nets.NORMS))
shared_torso = partial(config.setting, help="one torso for policy and value")
precision = partial(config.option, help="of the convolutions in updates", choices=tuple(PRECISIONS))
init = partial(config.option, help="initialisation of the weights", choices=tuple(nets.SCHEMES))

capacity = partial(config.count, help="transitions that the replay holds")
batch_size = partial(config.count, help="transitions of a gradient step")
replay_ratio = partial(
    config.constant, help="how often a step is learnt from; gradient steps a batch are rounded, to at least one", low=1e-9
)
learning_starts = partial(config.length, help="environment steps before the first gradient step")
n_step = partial(config.count, help="steps of a transition before it bootstraps")
tau = partial(
    config.number, help="how far the target network moves towards the online one each time; 1 copies it", low=1e-9, high=1.0
)
target_every = partial(config.count, help="gradient steps between two moves of the target network")
epsilon_start = partial(config.number, help="how often actions are random, at first", high=1.0)
epsilon_end = partial(config.number, help="how often actions are random, in the end", high=1.0)
epsilon_spread = partial(
    config.constant, help="environment i of N takes epsilon to the power 1 + this * i / (N - 1); Ape-X has 7", low=0.0
)
exploration = partial(config.number, help="the fraction of the run over which epsilon falls", low=1e-9, high=1.0)
double = partial(config.setting, help="the online network chooses the action that the target network values")
dueling = partial(config.setting, help="one stream for the state's value and one for the actions' advantages")
noisy = partial(config.setting, help="layers whose weights are noisy, to explore with")
prioritized = partial(config.setting, help="draw transitions by their last error")
alpha = partial(config.number, help="how much priorities count", high=1.0, needs="prioritized")
beta = partial(
    config.number,
    help="how much of the priorities' bias is corrected at first; all of it in the end",
    high=1.0,
    needs="prioritized",
)
frames = partial(
    config.count, help="frames of a stacked image, of which the replay keeps each once; 0 to keep observations whole", low=0
)
n_atoms = partial(config.count, help="returns that the distribution is over", low=2)
v_min = partial(config.constant, help="the least return that is told from lesser ones")
v_max = partial(config.constant, help="the greatest return that is told from greater ones")

utd = partial(config.constant, help="gradient steps of the critics an environment step", low=1e-9)
actor_lr = partial(config.number, help="learning rate of the policy")
critic_lr = partial(config.number, help="learning rate of the critics")
n_critics = partial(config.count, help="critics")
subset = partial(config.count, help="critics, drawn anew each time, of whose values targets take the least")
n_quantiles = partial(config.count, help="quantiles of the return, of each critic; 0 for its expectation", low=0)
critic_atoms = partial(config.count, help="returns that the distribution of each critic is over; 0 for none", low=0)
n_dropped = partial(config.count, help="of them, how many a critic are dropped from targets, the highest", low=0)
belief = partial(config.option, help="which of the critics' values a policy is to raise", choices=("least", "mean"))
critic_hidden = partial(config.counts, help="widths of the critics' hidden layers; the policy's if there are none")
adam_b1 = partial(config.constant, help="Adam's decay of the mean of gradients", low=0.0, high=0.999)
batch_norm = partial(
    config.setting, help="critics see both ends of transitions at once, normalised by that batch, and have no target networks"
)
unit_weights = partial(config.setting, help="weights whose size batch_norm takes away have the length one")
dropout = partial(config.constant, help="which part of each hidden layer of the critics is dropped", low=0.0, high=0.99)
policy_every = partial(config.count, help="gradient steps of the critics before the policy has its own")
policy_updates = partial(config.count, help="gradient steps of the policy each time")
noise_start = partial(config.number, help="deviation of the exploration noise, at first, in units of half the action's range")
noise_end = partial(config.number, help="deviation of the exploration noise, in the end")
