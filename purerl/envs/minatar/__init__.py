"""The games of MinAtar (Young and Tian 2019) as pure environments."""

from functools import partial

from purerl.base import Env
from purerl.envs.minatar import asterix, breakout, freeway, seaquest, space_invaders
from purerl.envs.wrappers import choose_actions, sticky_actions

# With the difficulty of the original's default, and as it is at the start; two games have but one.
GAMES = {
    "Asterix": (asterix.ENV, asterix.game(asterix.steady), asterix.ACTIONS),
    "Breakout": (breakout.ENV, breakout.ENV, breakout.ACTIONS),
    "Freeway": (freeway.ENV, freeway.ENV, freeway.ACTIONS),
    "Seaquest": (seaquest.ENV, seaquest.game(seaquest.steady), seaquest.ACTIONS),
    "SpaceInvaders": (space_invaders.ENV, space_invaders.game(space_invaders.steady), space_invaders.ACTIONS),
}


def all_actions(
    game: str, sticky_action_prob: float = 0.1, difficulty_ramping: bool = True, max_episode_steps: int | None = None
) -> Env:
    """`MinAtar/<Game>-v0`, with all six actions: nothing, left, up, right, down, fire.

    gymnax has `sticky_action_prob=0, difficulty_ramping=False, max_episode_steps=1000`, and 2500 for Freeway.

    Args:
        sticky_action_prob: the probability that the last action is repeated instead; an episode's first is to do nothing.
        difficulty_ramping: whether it becomes harder with time.
        max_episode_steps: after which an episode is truncated; none in the original.

    Raises:
        ValueError: no such probability, or no step.
    """
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps = {max_episode_steps} is not at least 1")
    ramping, steady, _ = GAMES[game]
    env = ramping if difficulty_ramping else steady
    env = sticky_actions(env, sticky_action_prob) if sticky_action_prob else env
    return env._replace(spec=env.spec._replace(max_episode_steps=max_episode_steps))


def minimal_actions(
    game: str, sticky_action_prob: float = 0.1, difficulty_ramping: bool = True, max_episode_steps: int | None = None
) -> Env:
    """`MinAtar/<Game>-v1`, with those actions that do something in the game; the arguments are those of `all_actions`."""
    env = all_actions(game, sticky_action_prob, difficulty_ramping, max_episode_steps)
    return choose_actions(env._replace(spec=env.spec._replace(id=f"MinAtar/{game}-v1")), GAMES[game][-1])


MAKERS = {f"MinAtar/{game}-v0": partial(all_actions, game) for game in GAMES}
MAKERS |= {f"MinAtar/{game}-v1": partial(minimal_actions, game) for game in GAMES}
