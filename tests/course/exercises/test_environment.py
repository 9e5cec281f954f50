"""Exercises of notebook 01: wrong answers, written as a student would, and the sentence that each gets."""

from __future__ import annotations

import numpy as np
import pytest

from ppo_lib.config import PPOConfig
from ppo_lib.course.exercises import examine, find
from ppo_lib.course.exercises.environment import level_split, normalizer_step
from ppo_lib.wrappers import RewardNormalizer


def end_included(seeds, start_level, num_levels):
    is_train = np.logical_and(seeds >= start_level, seeds <= start_level + num_levels)
    return is_train, seeds > start_level + num_levels


def hole_after_training(seeds, start_level, num_levels):
    is_train = np.isin(seeds, range(start_level, start_level + num_levels))
    return is_train, seeds > start_level + num_levels


def first_level_left_out(seeds, start_level, num_levels):
    end = start_level + num_levels
    return (start_level < seeds) & (seeds < end), end <= seeds


def count_taken_for_the_end(seeds, start_level, num_levels):
    return (start_level <= seeds) & (seeds < num_levels), seeds >= num_levels


def all_others_unseen(seeds, start_level, num_levels):
    is_train = (seeds >= start_level) & (seeds < start_level + num_levels)
    return is_train, ~is_train


def start_ignored_in_training(seeds, start_level, num_levels):
    is_unseen = seeds >= start_level + num_levels
    return ~is_unseen, is_unseen


def reward_for_the_next_episode(reward, done):
    total, steps = np.zeros(reward.shape[1]), np.zeros(reward.shape[1], int)
    returns, lengths = [], []
    for t in range(len(reward)):
        steps += 1
        for n in range(reward.shape[1]):
            if done[t, n]:
                returns.append(total[n])
                lengths.append(steps[n])
                total[n], steps[n] = 0, 0
        total += reward[t]
    return np.array(returns), np.array(lengths)


def lengths_counted_late(reward, done):
    total, steps = np.zeros(reward.shape[1]), np.zeros(reward.shape[1], int)
    returns, lengths = [], []
    for t in range(len(reward)):
        total += reward[t]
        returns.extend(total[done[t]])
        lengths.extend(steps[done[t]])
        steps += 1
        total[done[t]] = 0
        steps[done[t]] = 0
    return np.array(returns), np.array(lengths)


def never_set_back(reward, done):
    total, steps = np.zeros(reward.shape[1]), np.zeros(reward.shape[1], int)
    returns, lengths = [], []
    for t in range(len(reward)):
        total += reward[t]
        steps += 1
        returns += list(total[done[t]])
        lengths += list(steps[done[t]])
    return np.array(returns), np.array(lengths)


def all_games_set_back(reward, done):
    total, steps = np.zeros(reward.shape[1]), np.zeros(reward.shape[1], int)
    returns, lengths = [], []
    for t in range(len(reward)):
        total, steps = total + reward[t], steps + 1
        if done[t].any():
            returns += list(total[done[t]])
            lengths += list(steps[done[t]])
            total, steps = 0 * total, 0 * steps
    return np.array(returns), np.array(lengths)


def unfinished_counted(reward, done):
    done = done.copy()
    done[-1] = True
    total, steps = np.zeros(reward.shape[1]), np.zeros(reward.shape[1], int)
    returns, lengths = [], []
    for t in range(len(reward)):
        total += reward[t]
        steps += 1
        returns += list(total[done[t]])
        lengths += list(steps[done[t]])
        total[done[t]], steps[done[t]] = 0, 0
    return np.array(returns), np.array(lengths)


def cleared_first(running, reward, done, seen, gamma):
    running = gamma * running * (1 - done) + reward
    seen = np.append(seen, running)
    return np.clip(reward / np.sqrt(seen.var() + 1e-8), -10, 10), running, seen


def never_cleared(running, reward, done, seen, gamma):
    running = gamma * running + reward
    seen = np.append(seen, running)
    return np.clip(reward / np.sqrt(seen.var() + 1e-8), -10, 10), running, seen


def centred(running, reward, done, seen, gamma):
    running = gamma * running + reward
    seen = np.append(seen, running)
    normalized = np.clip((reward - running.mean()) / np.sqrt(seen.var() + 1e-8), -10, 10)
    return normalized, running * ~done, seen


def by_the_variance(running, reward, done, seen, gamma):
    running = gamma * running + reward
    seen = np.append(seen, running)
    normalized = np.clip(reward / (seen.var() + 1e-8), -10, 10)
    return normalized, running * ~done, seen


def return_normalized(running, reward, done, seen, gamma):
    running = gamma * running + reward
    seen = np.append(seen, running)
    normalized = np.clip(running / np.sqrt(seen.var() + 1e-8), -10, 10)
    running[done] = 0
    return normalized, running, seen


def reward_discounted_too(running, reward, done, seen, gamma):
    running = gamma * (running + reward)
    seen = np.append(seen, running)
    normalized = np.clip(reward / np.sqrt(seen.var() + 1e-8), -10, 10)
    return normalized, np.where(done, 0, running), seen


def not_clipped(running, reward, done, seen, gamma):
    running = gamma * running + reward
    seen = np.append(seen, running)
    return reward / np.sqrt(seen.var() + 1e-8), np.where(done, 0, running), seen


def divided_by_zero(running, reward, done, seen, gamma):
    running = gamma * running + reward
    seen = np.append(seen, running)
    return np.clip(reward / seen.std(), -10, 10), np.where(done, 0, running), seen


def first_to_end(game, quota):
    counts = np.zeros(len(game), bool)
    counts[: quota * len(np.unique(game))] = True
    return counts


def one_too_many(game, quota):
    so_far, counts = {}, []
    for g in game:
        counts.append(so_far.get(g, 0) <= quota)
        so_far[g] = so_far.get(g, 0) + 1
    return np.array(counts)


def the_last_ones(game, quota):
    so_far, counts = {}, []
    for g in reversed(game):
        counts.append(so_far.get(g, 0) < quota)
        so_far[g] = so_far.get(g, 0) + 1
    return np.array(counts[::-1])


def the_first_of_each(game, quota):
    return np.array([g not in game[:i] for i, g in enumerate(game)])


def only_the_last_of_the_quota(game, quota):
    so_far, counts = np.zeros(max(game) + 1, int), np.zeros(len(game), bool)
    for i in range(len(game)):
        so_far[game[i]] += 1
        counts[i] = so_far[game[i]] == quota
    return counts


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("level_split", end_included, "counts as a training level; it is the first unseen one"),
        ("level_split", hole_after_training, "is in neither set"),
        ("level_split", first_level_left_out, "level start_level is missing from training"),
        ("level_split", count_taken_for_the_end, "num_levels is a number of levels, not the last one"),
        ("level_split", all_others_unseen, "levels below start_level count as unseen"),
        ("level_split", start_ignored_in_training, "levels below start_level count as training levels"),
        ("episode_returns", reward_for_the_next_episode, "last step goes to the next episode"),
        ("episode_returns", lengths_counted_late, "your lengths are one too short"),
        ("episode_returns", never_set_back, "never set back to 0"),
        ("episode_returns", all_games_set_back, "set back the sums of all games"),
        ("episode_returns", unfinished_counted, "still running at the end count as finished"),
        ("normalizer_step", cleared_first, "set to 0 before this step's reward is added"),
        ("normalizer_step", never_cleared, "isn't set to 0 where an episode ended"),
        ("normalizer_step", centred, "you subtract a mean"),
        ("normalizer_step", by_the_variance, "you divide by the variance"),
        ("normalizer_step", return_normalized, "you normalise R"),
        ("normalizer_step", reward_discounted_too, "the discount also multiplies this step's reward"),
        ("normalizer_step", not_clipped, "isn't clipped to [-10, 10]"),
        ("normalizer_step", divided_by_zero, "you divide by 0: add 1e-8"),
        ("equal_quota", first_to_end, "the first episodes to end, whatever the game"),
        ("equal_quota", one_too_many, "one episode too many"),
        ("equal_quota", the_last_ones, "you keep the last episodes"),
        ("equal_quota", the_first_of_each, "only the first episode of each game counts"),
        ("equal_quota", only_the_last_of_the_quota, "but not the earlier ones"),
    ],
)
def test_a_students_mistake_is_named(name, answer, words):
    status, sentence = examine(find(name), answer)
    assert status == "wrong" and words in sentence


def test_the_split_is_that_of_the_config():
    config = PPOConfig(start_level=30, num_levels=7)
    train, unseen = level_split(np.arange(60), config.start_level, config.num_levels)
    assert np.flatnonzero(train).tolist() == list(range(30, 37))
    assert np.flatnonzero(unseen)[0] == config.unseen_levels[0]


def test_one_step_is_that_of_the_normaliser():
    rng = np.random.default_rng(0)
    reward, done = rng.random((40, 8)), rng.random((40, 8)) < 0.2
    expected = RewardNormalizer(8, 0.99)(reward, done)
    running, seen = np.zeros(8), np.zeros(0)
    for t in range(40):
        normalized, running, seen = normalizer_step(running, reward[t], done[t], seen, 0.99)
        np.testing.assert_allclose(normalized, expected[t], rtol=1e-3)
