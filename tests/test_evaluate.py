"""Evaluation is unbiased, complete, and carries the recurrent state."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

from ppo_lib.config import UserError
from ppo_lib.evaluate import Episode, evaluate, play_episodes, write_episodes
from ppo_lib.policy import ActorCritic
from ppo_lib.rollout import Player
from ppo_lib.runs import EVALUATION_COLUMNS


class ShortEpisodesScoreLow:
    """A stand-in for a SAME_STEP vector environment: an episode of L steps scores L, and L is 2 or 60, evenly.

    The true mean return is 31. Among the first episodes to finish, almost all are short.
    """

    def __init__(self, num_envs, seed=0):
        self.num_envs, self.rng = num_envs, np.random.default_rng(seed)

    def draw(self, n):
        return self.rng.choice([2, 60], size=n)

    def observation(self):
        return np.zeros((self.num_envs, 2, 2, 1), dtype=np.uint8), {"level_seed": self.length.copy()}

    def reset(self):
        self.length = self.draw(self.num_envs)
        self.step_count = np.zeros(self.num_envs, dtype=np.int64)
        return self.observation()

    def step(self, actions):
        self.step_count += 1
        done = self.step_count == self.length
        episode = {"r": np.where(done, self.length, 0).astype(np.float32), "l": self.step_count.copy()}
        self.length = np.where(done, self.draw(self.num_envs), self.length)
        self.step_count[done] = 0
        obs, info = self.observation()
        zeros = np.zeros(self.num_envs)
        return obs, zeros, done, np.zeros_like(done), {**info, "episode": episode, "_episode": done}


class Recorder(nn.Module):
    """A policy that counts steps in its state and is zeroed where the caller says that an episode starts."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(3))
        self.counts = []

    def initial_state(self, n):
        return torch.zeros(n, 1)

    def forward(self, obs, state, episode_start):
        state = state * ~episode_start.unsqueeze(-1) + 1
        self.counts.append(state.max().item())
        return self.logit.expand(len(obs), 3), torch.zeros(len(obs)), state


def test_short_episodes_are_not_favoured():
    returns = np.array([e.return_ for e in play_episodes(Recorder(), ShortEpisodesScoreLow(64), quota=16)])
    standard_error = 29 / np.sqrt(len(returns))
    assert len(returns) == 1024
    assert abs(returns.mean() - 31) < 3 * standard_error
    # what taking the first 48 to finish would have given, on the same games
    env = ShortEpisodesScoreLow(64)
    env.reset()
    first = []
    while len(first) < 48:
        _, _, done, _, info = env.step(None)
        first.extend(info["episode"]["r"][done])
    assert np.mean(first[:48]) < 31 / 2


def test_state_is_carried_through_an_episode_and_zeroed_between():
    recorder = Recorder()
    play_episodes(recorder, ShortEpisodesScoreLow(8), quota=5)
    assert max(recorder.counts) == 60


def test_a_played_step_needs_no_gradient():
    """Also where the policy returns a view of a parameter, which keeps its gradient under no_grad."""
    played = Player(Recorder(), ShortEpisodesScoreLow(2)).step()
    assert not played.logits.requires_grad and not played.value.requires_grad


def test_level_seed_belongs_to_the_finished_episode():
    for episode in play_episodes(Recorder(), ShortEpisodesScoreLow(8), quota=3):
        assert episode.level_seed == episode.length == episode.return_


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_real_game_complete_episodes_on_the_right_levels(tiny, split):
    config = tiny(num_levels=3, start_level=7)
    policy = ActorCritic(recurrent=False, seed=0)
    episodes = evaluate(policy, config, split, 6, seed=1)
    assert len(episodes) == 6
    first, count = config.train_levels if split == "train" else config.unseen_levels
    assert all(first <= e.level_seed < first + count and e.length > 1 for e in episodes)
    assert evaluate(policy, config, split, 6, seed=1) == episodes
    assert evaluate(policy, config, split, 6, seed=2) != episodes


def test_greedy_repeats_the_likeliest_action(tiny):
    policy = ActorCritic(recurrent=False, seed=0)
    with torch.no_grad():
        policy.actor.bias[4] = 50.0  # action 4: do nothing
    greedy = evaluate(policy, tiny(num_levels=1), "train", 2, greedy=True)
    sampled = evaluate(policy, tiny(num_levels=1), "train", 2)
    assert greedy == sampled


def test_the_quota_covers_odd_numbers_of_episodes(tiny):
    policy = ActorCritic(recurrent=False, seed=0)
    assert len(evaluate(policy, tiny(), "train", 5)) == 5
    assert len(evaluate(policy, tiny(), "train", 65)) == 66  # 33 environments x 2


def test_overlapping_levels_are_refused(tiny):
    with pytest.raises(UserError, match="overlap"):
        evaluate(ActorCritic(recurrent=False), tiny(num_levels=50), "unseen", 2, levels=(40, 20))


def test_rows_on_disk(tmp_path):
    path = tmp_path / "evaluation.csv"
    episodes = play_episodes(Recorder(), ShortEpisodesScoreLow(2), quota=1)
    write_episodes(path, 100, {"train": episodes})
    write_episodes(path, 200, {"unseen": episodes})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert tuple(rows[0]) == EVALUATION_COLUMNS and len(rows) == 4
    assert [float(row["return"]) for row in rows[2:]] == [e.return_ for e in episodes]


def test_evaluating_again_replaces_the_rows_of_those_steps(tmp_path):
    path = tmp_path / "evaluation.csv"
    for steps, returns in ((100, [1.0]), (200, [2.0, 2.0]), (200, [3.0])):
        write_episodes(path, steps, {"train": [Episode(0, value, 5) for value in returns]})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["steps"], row["return"]) for row in rows] == [("100", "1"), ("200", "3")]


def test_cudnn_does_not_retune_for_every_batch_size(monkeypatch):
    """As environments finish, up to 64 batch sizes occur; cudnn's benchmark mode would time its kernels for each."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen = []

    class Watching(Recorder):
        def forward(self, *arguments):
            seen.append(torch.backends.cudnn.benchmark)
            return super().forward(*arguments)

    play_episodes(Watching(), ShortEpisodesScoreLow(4), quota=1)
    assert seen and not any(seen) and torch.backends.cudnn.benchmark
