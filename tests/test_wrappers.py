"""Episode statistics and reward normalisation, compared with slow references."""

from __future__ import annotations

import json
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib.config import PPOConfig, UserError
from ppo_lib.envs import make_env
from ppo_lib.wrappers import EpisodeStatistics, NormalizeReward, RewardNormalizer


class Script(VectorEnv):
    """An environment that gives prepared rewards [T, N] and ends [T, N]."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (gymnasium's own form)

    def __init__(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        self.rewards, self.dones, self.time = rewards, dones, 0
        self.num_envs = rewards.shape[1]
        self.single_observation_space = gymnasium.spaces.Discrete(2)
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(self.num_envs, int), {}

    def step_async(self, actions: np.ndarray) -> None:
        self.time += 1

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward, done = self.rewards[self.time - 1], self.dones[self.time - 1]
        odd = np.arange(self.num_envs) % 2 == 1  # half of the ends are time-outs
        return np.zeros(self.num_envs, int), reward.astype(np.float32), done & ~odd, done & odd, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.step_async(actions)
        return self.step_wait()

    def get_state(self) -> int:
        return self.time

    def set_state(self, state: int) -> None:
        self.time = state


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [T, N] of Procgen's kind (mostly 0, some +1 or +10, some fractions) and ends [T, N]."""
    steps, num_envs = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = np.array(draw(st.sampled_from([[0, 1], [0, 0, 1, 10], [-1, 0, 0.04], [0]])), float)
    rewards = generator.choice(values, (steps, num_envs))
    return rewards, generator.random((steps, num_envs)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))


# --- EpisodeStatistics ------------------------------------------------------------------------------------------------


@settings(deadline=None)  # a loaded machine is no failure
@given(rollouts(), st.integers(0, 40), st.booleans())
def test_statistics_are_those_of_the_finished_episodes(rollout: tuple, stop: int, split_steps: bool) -> None:
    rewards, dones = rollout
    env = EpisodeStatistics(Script(rewards, dones))
    env.reset()
    starts = np.zeros(env.num_envs, int)
    for t in range(len(rewards)):
        if t == stop:  # resume: another object continues from the saved state
            state = json.loads(json.dumps(env.get_state()))
            env = EpisodeStatistics(Script(rewards, dones))
            env.set_state(state)
        if split_steps:
            env.step_async(np.zeros(env.num_envs))
            _, _, terminated, truncated, info = env.step_wait()
        else:
            _, _, terminated, truncated, info = env.step(np.zeros(env.num_envs))
        done = terminated | truncated
        assert (done == dones[t]).all() and ("episode" in info) == done.any()
        for i in np.flatnonzero(done):
            assert info["_episode"][i]
            assert info["episode"]["r"][i] == pytest.approx(rewards[starts[i] : t + 1, i].sum(), abs=1e-5)
            assert info["episode"]["l"][i] == t + 1 - starts[i]
            starts[i] = t + 1
        if done.any():
            assert info["episode"]["r"].dtype == np.float32 and info["episode"]["l"].dtype == np.int64
            assert not info["episode"]["r"][~done].any() and not info["episode"]["l"][~done].any()
            assert (info["_episode"] == done).all()


def test_reset_forgets_unfinished_episodes() -> None:
    env = EpisodeStatistics(Script(np.ones((3, 2)), np.array([[0, 0], [0, 0], [1, 1]], bool)))
    env.reset()
    env.step(np.zeros(2)), env.step(np.zeros(2))
    env.reset()
    info = env.step(np.zeros(2))[4]
    assert info["episode"]["r"].tolist() == [1, 1] and info["episode"]["l"].tolist() == [1, 1]


# --- RewardNormalizer -------------------------------------------------------------------------------------------------


def reference(rewards: np.ndarray, dones: np.ndarray, gamma: float, clip: float = 10.0) -> np.ndarray:
    """The definition, with every discounted return so far kept and the variance taken of all of them anew."""
    returns, seen, result = np.zeros(rewards.shape[1]), [], []
    for reward, done in zip(rewards, dones, strict=True):
        returns = gamma * returns + reward
        seen.extend(returns)
        # The running moments start from mean 0 and variance 1 with weight 1e-4.
        weight = 1e-4 + len(seen)
        mean = sum(seen) / weight
        var = (1e-4 * (1 + mean**2) + sum((x - mean) ** 2 for x in seen)) / weight
        result.append(np.clip(reward / math.sqrt(var + 1e-8), -clip, clip))
        returns = np.where(done, 0, returns)
    return np.array(result)


@settings(deadline=None)  # a loaded machine is no failure
@given(rollouts(), st.sampled_from([0.0, 0.9, 0.999, 1.0]))
def test_normaliser_is_its_definition(rollout: tuple, gamma: float) -> None:
    rewards, dones = rollout
    whole = RewardNormalizer(rewards.shape[1], gamma)(rewards, dones)
    assert whole.dtype == np.float32 and whole.shape == rewards.shape
    np.testing.assert_allclose(whole, reference(rewards, dones, gamma), rtol=1e-4, atol=1e-6)


@settings(deadline=None)  # a loaded machine is no failure
@given(rollouts(), st.integers(0, 40))
def test_normaliser_is_the_same_in_steps_in_rollouts_and_after_a_resume(rollout: tuple, cut: int) -> None:
    rewards, dones = rollout
    whole = RewardNormalizer(rewards.shape[1], 0.99)(rewards, dones)
    stepped = RewardNormalizer(rewards.shape[1], 0.99)
    assert np.array_equal(whole, [stepped(r, d) for r, d in zip(rewards, dones, strict=True)])
    first, second = RewardNormalizer(rewards.shape[1], 0.99), RewardNormalizer(rewards.shape[1], 0.99)
    parts = [first(rewards[:cut], dones[:cut])] if cut else []
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    parts += [second(rewards[cut:], dones[cut:])] if cut < len(rewards) else []
    assert np.array_equal(whole, np.concatenate(parts)), "a resumed normaliser must continue bit for bit"


def test_normaliser_gives_the_same_rewards_in_any_unit() -> None:
    rewards = np.random.default_rng(0).choice([0.0, 0, 0, 1], (500, 8))
    dones = np.random.default_rng(1).random((500, 8)) < 0.02
    small, large = (RewardNormalizer(8, 0.99)(rewards * unit, dones) for unit in (1, 100))
    np.testing.assert_allclose(small[50:], large[50:], rtol=1e-2)


def test_normaliser_forgets_the_return_at_an_end_only() -> None:
    normalizer = RewardNormalizer(2, 0.5)
    normalizer(np.array([1.0, 1.0]), np.array([True, False]))
    assert normalizer.returns.tolist() == [0, 1]
    normalizer(np.array([1.0, 1.0]), np.array([False, False]))
    assert normalizer.returns.tolist() == [1, 1.5]


def test_normaliser_clips() -> None:
    quiet = np.zeros((200, 4))
    quiet[-1] = [100, -100, 0.0, 1.0]
    assert RewardNormalizer(4, 0.9)(quiet, np.zeros((200, 4), bool))[-1, :3].tolist() == [10, -10, 0]
    assert RewardNormalizer(4, 0.9, clip=2)(quiet, np.zeros((200, 4), bool))[-1, :2].tolist() == [2, -2]


@pytest.mark.parametrize(("reward", "done"), [((3,), (3,)), ((4, 3), (4, 3)), ((2,), (5, 2)), ((), ()), ((1,), (1,))])
def test_normaliser_refuses_other_shapes(reward: tuple, done: tuple) -> None:
    with pytest.raises(UserError, match=r"\[2\] or \[T, 2\]"):
        RewardNormalizer(2, 0.99)(np.zeros(reward), np.zeros(done, bool))


def test_normalisers_state_survives_torchs_safe_loader(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    normalizer = RewardNormalizer(3, 0.99)
    normalizer(np.ones((5, 3)), np.zeros((5, 3), bool))
    torch.save(normalizer.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == normalizer.state_dict()


# --- on the real game -------------------------------------------------------------------------------------------------


def test_normalised_environment_keeps_the_score_raw() -> None:
    config = PPOConfig()
    raw, env = make_env(config, num_envs=4), NormalizeReward(make_env(config, num_envs=4), gamma=0.999)
    raw.reset(), env.reset()
    rewards, dones, normalised, scores = [], [], [], []
    for actions in np.random.default_rng(0).integers(0, 15, (200, 4)):
        _, reward, done, _, info = raw.step(actions)
        _, scaled, _, _, same = env.step(actions)
        rewards.append(reward), dones.append(done), normalised.append(scaled)
        if done.any():
            assert np.array_equal(info["episode"]["r"], same["episode"]["r"])
            scores += info["episode"]["r"][done].tolist()
    np.testing.assert_allclose(normalised, reference(np.array(rewards), np.array(dones), 0.999), rtol=1e-4, atol=1e-6)
    assert len(scores) >= 4 and sum(scores) > 0
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 120))
def test_statistics_resume_inside_real_episodes(stop: int) -> None:
    config = PPOConfig()
    one, two = make_env(config, num_envs=3), make_env(config, num_envs=3, seed=9)
    one.reset()
    actions = np.random.default_rng(stop).integers(0, 15, (stop + 100, 3))
    for a in actions[:stop]:
        one.step(a)
    two.set_state(one.get_state())
    for a in actions[stop:]:
        left, right = one.step(a)[4], two.step(a)[4]
        assert left.keys() == right.keys()
        if "episode" in left:
            assert np.array_equal(left["episode"]["r"], right["episode"]["r"])
            assert np.array_equal(left["episode"]["l"], right["episode"]["l"])
