"""PPOConfig: what is accepted, what is refused and how it says so."""

import dataclasses
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo_lib.config import (
    ABSENT,
    DISTRIBUTION_MODES,
    GAMES,
    LEVEL_LIMIT,
    PRESETS,
    UNSEEN_RESERVE,
    ConfigError,
    PPOConfig,
    derive_seed,
    field_types,
    preset,
)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_share_the_published_settings(name):
    config = preset(name)
    shared = dict(num_envs=64, num_minibatches=8, learning_rate=5e-4, gamma=0.999, gae_lambda=0.95, clip_range=0.2,
                  entropy_coef=0.01, value_coef=0.5, max_grad_norm=0.5)  # fmt: skip
    if name != "quick":  # whose rollouts and epochs are the result of a search
        shared |= dict(num_steps=256, num_epochs=3, encoder_init="orthogonal")
    assert {field: getattr(config, field) for field in shared} == shared


def test_paper_preset_is_the_published_protocol():
    config = preset("paper")
    assert (config.num_levels, config.total_steps, config.distribution_mode) == (200, 25_000_000, "easy")
    assert config.use_backgrounds and not config.restrict_themes and not config.recurrent


@given(
    num_levels=st.integers(0, 100_000),
    seed=st.integers(0, LEVEL_LIMIT - 1),
    gamma=st.floats(0, 1),
    recurrent=st.booleans(),
    learning_rate=st.floats(1e-8, 1),
)
def test_json_both_ways(**fields):
    config = PPOConfig(**fields)
    assert PPOConfig.from_saved_json(config.to_json()) == config
    assert set(json.loads(config.to_json())) == set(field_types(PPOConfig))


@given(start=st.integers(0, LEVEL_LIMIT // 2), count=st.integers(1, LEVEL_LIMIT // 2 - 1))
def test_unseen_levels_never_touch_training_levels(start, count):
    config = PPOConfig(start_level=start, num_levels=count)
    train, unseen = config.train_levels, config.unseen_levels
    assert train == (start, count)
    assert unseen[0] == start + count and unseen[1] >= 1 and sum(unseen) == LEVEL_LIMIT


def test_unlimited_training_leaves_levels_unseen():
    config = PPOConfig(num_levels=0)
    assert sum(config.train_levels) == config.unseen_levels[0]
    assert config.unseen_levels[1] == UNSEEN_RESERVE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"env_name": "starpilto"}, "did you mean 'starpilot'"),
        ({"distribution_mode": "medium"}, "distribution_mode"),
        (
            {"env_name": "coinrun", "distribution_mode": "memory"},
            "coinrun has no memory mode; choose one of: easy, hard",
        ),
        ({"gama": 0.9}, "did you mean 'gamma'"),
        ({"gamma": 1.5}, "at most 1"),
        ({"gamma": float("nan")}, "at least 0"),
        ({"learning_rate": 0}, "above 0"),
        ({"learning_rate": float("inf")}, "at most 1"),
        ({"clip_range": 1.0}, "at most 0.999"),
        ({"entropy_coef": -0.1}, "at least 0"),
        ({"max_grad_norm": 0}, "above 0"),
        ({"num_envs": 0}, "at least 1"),
        ({"total_steps": -5}, "at least 1"),
        ({"num_levels": -1}, "at least 0"),
        ({"start_level": 2**31}, "at most"),
        ({"entropy_coef": 1e12}, "at most"),
        ({"start_level": 2**31 - 10, "num_levels": 100}, "unseen levels remain"),
        ({"start_level": 5, "num_levels": 0}, "leave start_level at 0"),
        ({"num_minibatches": 7}, "try 8"),
        ({"sequence_length": 30}, "try 32"),
        ({"eval_interval": -2}, "eval_interval"),
        ({"device": "gpu"}, "device must be"),
        ({"device": "cuda:x"}, "device must be"),
        ({"precision": "half"}, "no precision 'half'; choose one of: auto"),
        ({"encoder_init": "xavier"}, "no encoder_init 'xavier'; choose one of: orthogonal"),
        ({"num_envs": 2.5}, "whole number"),
        ({"num_envs": "many"}, "whole number"),
        ({"recurrent": 1}, "true or false"),
        ({"seed": True}, "whole number"),
    ],
)
def test_bad_values_get_one_sentence(fields, words):
    with pytest.raises(ConfigError, match=words) as caught:
        PPOConfig.from_dict(fields)
    assert "\n" not in str(caught.value)


ALL_MODES = """
import os, sys
from ppo_lib.config import DISTRIBUTION_MODES, GAMES
from ppo_lib.procgen.env import DIFFICULTIES
from ppo_lib.procgen.library import Games

def start(game, mode):
    fixed = dict(num_levels=1, start_level=0, num_actions=15, num_threads=0, rand_seed=0)
    flags = dict(use_backgrounds=False, restrict_themes=True, center_agent=True)
    return Games(1, dict(env_name=game, distribution_mode=DIFFICULTIES[mode], **fixed, **flags), False)

first = start("maze", "easy")  # loads the images once for all
for mode in DISTRIBUTION_MODES:
    for game in GAMES:
        if not (child := os.fork()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            start(game, mode)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            print(mode, game)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the games end a process that asks for a mode that they lack")
def test_a_config_is_valid_if_the_game_has_the_mode():
    """All games in all modes, as the games' own C++ code accepts them."""
    shown = subprocess.run(
        [sys.executable, "-c", ALL_MODES], cwd=Path(__file__).parents[1], text=True, capture_output=True
    )
    playable = {tuple(line.split()) for line in shown.stdout.splitlines()}
    assert len(playable) > len(GAMES), shown.stderr
    for mode, game in product(DISTRIBUTION_MODES, GAMES):
        if (mode, game) in playable:
            assert PPOConfig(env_name=game, distribution_mode=mode)
        else:
            with pytest.raises(ConfigError, match=f"^{game} has no {mode} mode; choose one of: easy, hard"):
                PPOConfig(env_name=game, distribution_mode=mode)


def test_suggested_divisors_are_accepted():
    assert PPOConfig(num_minibatches=8, sequence_length=32, num_envs=64)
    assert PPOConfig(recurrent=False, sequence_length=30)  # without a GRU the length is not used


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        preset("papers")


def test_broken_json_is_explained():
    for text in ("{", "[1]"):
        with pytest.raises(ConfigError):
            PPOConfig.from_saved_json(text)


def test_whole_floats_count_as_integers_and_configs_are_frozen():
    config = PPOConfig(total_steps=1e6)
    assert config.total_steps == 1_000_000 and isinstance(config.total_steps, int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_updates_reach_total_steps():
    config = PPOConfig(total_steps=1_000_000)
    assert config.num_updates == 62 and 62 * config.batch_size >= 1_000_000 > 61 * config.batch_size


def test_derived_seeds_differ_by_path_and_repeat():
    seeds = {derive_seed(s, *path) for s in (0, 1) for path in (("train", 0), ("train", 1), ("unseen",), ("weights",))}
    assert len(seeds) == 8 and all(0 <= seed < LEVEL_LIMIT for seed in seeds)
    assert derive_seed(3, "train", 1) == derive_seed(3, "train", 1)


@dataclasses.dataclass(frozen=True)
class ConfigWithField(PPOConfig):
    """What a method with a setting of its own makes of PPOConfig."""

    my_coef: float = 0.1


def test_a_subclass_with_a_field_of_its_own_is_a_config():
    config = ConfigWithField(my_coef=1)
    assert config.my_coef == 1.0 and isinstance(config.my_coef, float)
    assert config.replace(gamma=0.9) == ConfigWithField(my_coef=1.0, gamma=0.9)
    assert "my_coef" in field_types(ConfigWithField) and "my_coef" not in field_types(PPOConfig)
    with pytest.raises(ConfigError, match="did you mean 'my_coef'"):
        config.replace(my_coeff=2)
    with pytest.raises(ConfigError, match="my_coef must be a number"):
        ConfigWithField(my_coef="x")


def test_a_saved_config_keeps_fields_of_a_subclass_that_the_reader_does_not_have():
    saved = ConfigWithField(my_coef=0.3, seed=4).to_json()
    read = PPOConfig.from_saved_json(saved)
    assert isinstance(read, PPOConfig) and read.to_json() == saved
    assert ConfigWithField.from_saved_json(saved) == ConfigWithField(my_coef=0.3, seed=4)


def test_a_field_that_a_saved_config_lacks_means_what_the_code_did_then():
    saved = PPOConfig().to_dict()
    for name in ABSENT:
        del saved[name]
    assert PPOConfig.from_saved(saved).to_dict() == {**PPOConfig().to_dict(), **ABSENT}
    del saved["gamma"]  # every run has saved it: today's default must not replace it
    with pytest.raises(ConfigError, match="lacks gamma"):
        PPOConfig.from_saved(saved)
