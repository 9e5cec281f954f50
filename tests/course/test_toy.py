"""The toy tasks: what they promise as environments, and that PPO reaches their known best return."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppo_lib.config import UserError
from ppo_lib.course import toy
from ppo_lib.evaluate import play_episodes
from ppo_lib.policy import ActorCritic
from ppo_lib.ppo import PPO


def walk_to_goal(place: np.ndarray) -> np.ndarray:
    """The best action in `grid`: first to the goal's row, then to its column."""
    row, column = place // toy.SIZE, place % toy.SIZE
    goal_row, goal_column = divmod(toy.GOAL, toy.SIZE)
    sideways = np.where(column < goal_column, 1, 3)
    return np.where(row > goal_row, 0, np.where(row < goal_row, 2, sideways))


def test_a_perfect_player_gets_the_known_best_return():
    env = toy.make_env("grid", 256, seed=3)
    env.reset()
    returns, starts = [], []
    for _ in range(200):
        start = env.env.level.copy()
        _, _, done, _, info = env.step(walk_to_goal(env.env.place))
        if done.any():
            returns.extend(info["episode"]["r"][done])
            starts.extend(start[done])
    best = toy.optimal_value(gamma=1.0).ravel()
    np.testing.assert_allclose(returns, best[starts], atol=1e-5)
    assert set(starts) == set(range(64)) - {toy.GOAL}
    assert toy.optimal_return("grid") == pytest.approx(np.nanmean(best))


def test_optimal_value_obeys_bellman():
    gamma = 0.9
    value = toy.optimal_value(gamma)
    assert value[1, 5] == pytest.approx(1 - toy.STEP_COST)  # one step from the goal
    assert value[1, 4] == pytest.approx(gamma * value[1, 5] - toy.STEP_COST)


@pytest.mark.parametrize("task", toy.TASKS)
def test_same_seed_same_task_and_same_step_autoreset(task):
    """The observation and the level of a step that ends an episode are those of the next one, as in the games."""
    rng = np.random.default_rng(0)
    actions, ended = rng.integers(4, size=(60, 8)), 0
    one, two = (toy.make_env(task, 8, seed=1) for _ in range(2))
    (obs, info), _ = one.reset(), two.reset()
    assert obs.shape == (8, 8, 8, 3) and obs.dtype == np.uint8 and info["level_seed"].shape == (8,)
    first = toy.ToyEnv(task, 8)
    for action in actions:
        two.step_async(action)
        answers = one.step(action), two.step_wait()
        for a, b in zip(*(answer[:4] for answer in answers), strict=True):
            np.testing.assert_array_equal(a, b)
        obs, _, done, truncated, info = answers[0]
        first.level, first.place = info["level_seed"], info["level_seed"]
        np.testing.assert_array_equal(obs[done], first.observe()[0][done])
        assert not truncated.any()
        ended += done.sum()
    assert ended >= 8


def test_memory_shows_the_cue_once_and_asks_later():
    env = toy.make_env("memory", 64, seed=0)
    obs, info = env.reset()
    cue, frames = info["level_seed"], [obs]
    for _ in range(toy.TASKS["memory"] - 1):
        obs, reward, done, _, _ = env.step(cue)
        assert not done.any() and not reward.any()
        frames.append(obs)
    assert (frames[0][..., 0].reshape(64, 2, 4, 2, 4).max((2, 4)).reshape(64, 4).argmax(1) == cue).all()
    assert not np.any(frames[1:-1]) and (frames[-1] == 255).all()
    _, reward, done, _, info = env.step(cue)
    assert done.all() and (reward == 1).all() and (info["episode"]["l"] == 5).all()


def test_an_unknown_task_is_explained():
    with pytest.raises(UserError, match="no toy task 'gird'; did you mean 'grid'"):
        toy.make_env("gird", 2)


def test_ppo_solves_the_bandit():
    policy, curve = toy.train("bandit", toy.toy_config(total_steps=10_000))
    assert curve["return_mean"][0] < 0.4
    assert curve["return_mean"][-1] > 0.95 * toy.optimal_return("bandit")
    greedy = play_episodes(policy, toy.make_env("bandit", 64, seed=7), quota=4, greedy=True)
    assert [episode.return_ for episode in greedy] == [1.0] * 256


def test_ppo_with_the_real_encoder_solves_the_bandit():
    config = toy.toy_config(total_steps=3_200, num_steps=10, num_epochs=2)
    policy = ActorCritic(4, recurrent=False, obs_shape=(8, 8, 3), seed=0)
    _, curve = toy.train("bandit", config, PPO(policy, config))
    assert curve["return_mean"][-1] > 0.9


def test_only_the_gru_solves_the_memory_task():
    _, with_gru = toy.train("memory", toy.toy_config(total_steps=19_200, recurrent=True))
    _, without = toy.train("memory", toy.toy_config(total_steps=19_200))
    assert with_gru["return_mean"][-1] > 0.95
    assert without["return_mean"][-3:].mean() < 0.4  # guessing earns 0.25


def test_ppo_walks_the_shortest_way_and_knows_its_value():
    config = toy.toy_config(total_steps=64_000, num_steps=50)
    policy, curve = toy.train("grid", config)
    assert curve["return_mean"][-1] > 0.97 * toy.optimal_return("grid")
    best = toy.optimal_value(config.gamma)
    value, likeliest = toy.grid_map(policy)
    cells = ~np.isnan(best)
    assert np.abs(value - best)[cells].mean() < 0.1
    visible = np.arange(64).reshape(8, 8)
    after = visible // 8 + toy.MOVES[likeliest][..., 0], visible % 8 + toy.MOVES[likeliest][..., 1]
    nearer = [np.abs(r - toy.GOAL // 8) + np.abs(c - toy.GOAL % 8) for r, c in (after, (visible // 8, visible % 8))]
    assert (nearer[0] < nearer[1])[cells].mean() > 0.9  # all but a few cells point the right way


def test_the_same_seed_gives_the_same_training():
    config = toy.toy_config(total_steps=2_560)
    before = torch.random.get_rng_state()
    (_, one), (_, two) = toy.train("grid", config), toy.train("grid", config)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert torch.equal(before, torch.random.get_rng_state())  # global generators stay untouched
