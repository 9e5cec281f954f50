"""make_env: the levels of each split, and what a run's config decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_lib.config import LEVEL_LIMIT, PPOConfig, UserError, derive_seed
from ppo_lib.envs import NUM_ACTIONS, ProcgenVectorEnv, make_env


@pytest.mark.parametrize(("num_levels", "start_level"), [(50, 0), (3, 100), (0, 0), (1, LEVEL_LIMIT - 3)])
def test_each_split_plays_its_own_levels(num_levels: int, start_level: int) -> None:
    config = PPOConfig(num_levels=num_levels, start_level=start_level)
    for split, (first, count) in {"train": config.train_levels, "unseen": config.unseen_levels}.items():
        env = make_env(config, split, num_envs=8)
        seen = env.reset()[1]["level_seed"].tolist()
        for a in np.random.default_rng(0).integers(0, NUM_ACTIONS, (120, 8)):
            seen += env.step(a)[4]["level_seed"].tolist()
        assert first <= min(seen) and max(seen) < first + count
        env.close()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(1, 200))
def test_overlapping_levels_are_refused_as_unseen_and_others_are_not(first: int, count: int) -> None:
    config = PPOConfig(num_levels=50, start_level=60)
    overlap = bool(set(range(first, first + count)) & set(range(60, 110)))
    try:
        env = make_env(config, "unseen", levels=(first, count), num_envs=1, num_threads=0)
    except UserError as error:
        assert overlap and "overlap" in str(error) and "110" in str(error)
    else:
        assert not overlap and first <= env.reset()[1]["level_seed"][0] < first + count
        env.close()


def test_make_env_follows_the_config_and_its_seed() -> None:
    config = PPOConfig(env_name="maze", num_levels=7, num_envs=3, seed=5)
    env = make_env(config)
    obs, info = env.reset()
    direct = ProcgenVectorEnv(config, (0, 7), 3, derive_seed(5, "train"), None, False)
    assert obs.shape == (3, 64, 64, 3) and np.array_equal(obs, direct.reset()[0])
    assert set(info["level_seed"]) <= set(range(7))
    assert not np.array_equal(env.reset(seed=1)[0], make_env(config, "unseen", seed=1).reset()[0])
    with pytest.raises(UserError, match="split must be"):
        make_env(config, "test")
    with pytest.raises(UserError, match="number of levels must be"):
        make_env(config, levels=(0, 0))
