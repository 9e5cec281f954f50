"""ActorCritic and action sampling."""

import math

import pytest
import torch

from ppo_lib.config import PPOConfig
from ppo_lib.policy import ActorCritic, make_policy, sample_actions, sampling_noise


@pytest.mark.parametrize(
    ("recurrent", "pooling", "count"),
    [
        (False, "flatten", 626_256),
        (True, "flatten", 1_021_008),
        (False, "average", 110_160),
        (True, "average", 504_912),
    ],
)
def test_parameter_counts(recurrent, pooling, count):
    policy = make_policy(PPOConfig(recurrent=recurrent, pooling=pooling))
    assert sum(p.numel() for p in policy.parameters()) == count


@pytest.mark.parametrize("pooling", ["flatten", "average"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_step_and_sequence_agree(recurrent, pooling):
    policy = ActorCritic(recurrent=recurrent, obs_shape=(8, 8, 3), seed=0, pooling=pooling)
    obs = torch.randint(0, 256, (5, 3, 8, 8, 3), dtype=torch.uint8)
    start = torch.rand(5, 3) < 0.3
    first = torch.randn(3, policy.state_size)
    logits, values, last = policy(obs, first, start)
    assert logits.shape == (5, 3, 15) and values.shape == (5, 3) and last.shape == (3, policy.state_size)
    state = first
    for t in range(5):
        step_logits, step_values, state = policy(obs[t], state, start[t])
        torch.testing.assert_close(step_logits, logits[t])
        torch.testing.assert_close(step_values, values[t])
    torch.testing.assert_close(state, last)


def test_the_encoders_first_weights_can_be_glorots():
    ours, glorot = (ActorCritic(seed=1, encoder_init=name).state_dict() for name in ("orthogonal", "glorot"))
    for name, weight in ours.items():
        same = torch.equal(weight, glorot[name])
        assert same == (not name.startswith("encoder") or "bias" in name), name


def test_first_policy_is_almost_uniform():
    policy = ActorCritic(seed=1)
    obs = torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8)
    logits, _, _ = policy(obs, policy.initial_state(16), torch.ones(16, dtype=torch.bool))
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert (math.log(15) - entropy).max() < 0.01


def test_head_gains():
    policy = ActorCritic(seed=0)
    assert torch.linalg.svdvals(policy.actor.weight.detach()).max().item() == pytest.approx(0.01, rel=1e-3)
    assert policy.critic.weight.norm().item() == pytest.approx(1.0, rel=1e-3)


def test_seed_fixes_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = ActorCritic(seed=2).state_dict(), ActorCritic(seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.rand(3), expected)
    other = ActorCritic(seed=3).state_dict()
    assert not torch.equal(first["actor.weight"], other["actor.weight"])


@pytest.mark.parametrize("pooling", ["flatten", "average"])
def test_bf16_encoder_keeps_the_rest_in_float32(pooling):
    policy = ActorCritic(seed=0, pooling=pooling)
    obs = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    args = (obs, policy.initial_state(4), torch.zeros(4, dtype=torch.bool))
    _, exact, _ = policy(*args)
    policy.autocast_dtype = torch.bfloat16
    logits, values, state = policy(*args)
    assert logits.dtype == values.dtype == state.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    assert 0 < (values - exact).abs().max() < 0.1


def test_samples_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    generator = torch.Generator().manual_seed(0)
    draws = sample_actions(probabilities.log().expand(40_000, 5), sampling_noise(40_000, 5, generator))
    frequencies = draws.bincount(minlength=5) / len(draws)
    torch.testing.assert_close(frequencies, probabilities, atol=0.01, rtol=0)
    assert frequencies[4] == 0


def test_make_policy_builds_what_the_config_says():
    config = PPOConfig(recurrent=False, width_scale=2, seed=3, encoder_init="glorot")
    policy, again = make_policy(config), make_policy(config)
    assert policy.core is None and policy.encoder.blocks[0].conv.out_channels == 32
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    other = make_policy(config.replace(seed=4))
    assert not torch.equal(policy.actor.weight, other.actor.weight)
    assert make_policy(PPOConfig()).state_size == 256
