"""The exercises of notebook 03: mistakes written as a student would write them each get their own sentence."""

from __future__ import annotations

import pytest
import torch

from ppo_lib.course.exercises import examine, find
from ppo_lib.course.exercises.storage import EXERCISES


def test_every_solution_passes_and_no_two_mistakes_are_the_same():
    for exercise in EXERCISES:
        assert examine(exercise, exercise.solution) == ("solved", "")
        for sentence, wrong in exercise.mistakes.items():
            assert examine(exercise, wrong) == ("wrong", sentence)


def td_error_by_loops(reward, value, done, last_value, gamma):
    delta = torch.zeros_like(reward)
    for t in range(len(reward)):
        following = last_value if t + 1 == len(reward) else value[t + 1]
        delta[t] = reward[t] + gamma * following * (1 - done[t].float()) - value[t]
    return delta


def td_error_without_mask(reward, value, done, last_value, gamma):
    return reward + gamma * torch.cat([value[1:], last_value[None]]) - value


def td_error_with_the_next_mask(reward, value, done, last_value, gamma):
    delta = torch.zeros_like(reward)
    for t in range(len(reward)):
        last = t + 1 == len(reward)
        following = last_value if last else value[t + 1] * (1 - done[t + 1].float())
        delta[t] = reward[t] + gamma * following - value[t]
    return delta


def td_error_with_zero_at_the_end(reward, value, done, last_value, gamma):
    following = torch.zeros_like(value)
    following[:-1] = value[1:]
    return reward + gamma * (~done).float() * following - value


def td_error_without_reward_at_the_end(reward, value, done, last_value, gamma):
    return (reward + gamma * torch.cat([value[1:], last_value[None]])) * (~done).float() - value


def gae_by_definition(delta, done, gamma, gae_lambda):
    advantage = torch.zeros_like(delta)
    for t in range(len(delta)):
        weight = torch.ones_like(delta[0])
        for s in range(t, len(delta)):
            advantage[t] += weight * delta[s]
            weight = weight * gamma * gae_lambda * (~done[s]).float()
    return advantage


def gae_forwards(delta, done, gamma, gae_lambda):
    advantage, running = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in range(len(delta)):
        running = delta[t] + gamma * gae_lambda * (~done[t]).float() * running
        advantage[t] = running
    return advantage


def gae_across_ends(delta, done, gamma, gae_lambda):
    advantage, running = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + gamma * gae_lambda * running
        advantage[t] = running
    return advantage


def gae_with_lambda_alone(delta, done, gamma, gae_lambda):
    advantage, running = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        advantage[t] = running = delta[t] + gae_lambda * (~done[t]) * running
    return advantage


def gae_of_two_steps(delta, done, gamma, gae_lambda):
    advantage = delta.clone()
    advantage[:-1] += gamma * gae_lambda * (~done[:-1]) * delta[1:]
    return advantage


def bootstrap_by_rows(value, last_value, final_value, terminated, truncated):
    expected = torch.zeros_like(value)
    for t in range(len(value)):
        expected[t] = last_value if t == len(value) - 1 else value[t + 1]
        expected[t][truncated[t]] = final_value[t][truncated[t]]
        expected[t][terminated[t]] = 0
    return expected


def bootstrap_with_every_done_an_end(value, last_value, final_value, terminated, truncated):
    return torch.cat([value[1:], last_value[None]]) * ~(terminated | truncated)


def bootstrap_from_the_next_episode(value, last_value, final_value, terminated, truncated):
    return torch.cat([value[1:], last_value[None]]) * ~terminated


def bootstrap_without_last_value(value, last_value, final_value, terminated, truncated):
    expected = torch.zeros_like(value)
    expected[:-1] = value[1:]
    expected = torch.where(truncated, final_value, expected)
    expected[terminated] = 0
    return expected


def index_by_loops(units, num_envs, length):
    step, env = torch.zeros(length, len(units), dtype=torch.long), torch.zeros(len(units), dtype=torch.long)
    for place, unit in enumerate(units.tolist()):
        sequence, env[place] = divmod(unit, num_envs)
        step[:, place] = sequence * length + torch.arange(length)
    return step, env


def index_that_overlaps(units, num_envs, length):
    return units // num_envs + torch.arange(length)[:, None], units % num_envs


def index_exchanged(units, num_envs, length):
    return (units % num_envs) * length + torch.arange(length)[:, None], units // num_envs


def index_with_batch_first(units, num_envs, length):
    return (units // num_envs * length)[:, None] + torch.arange(length), units % num_envs


def log_probs_by_distribution(policy, batch):
    logits = policy(batch.obs, batch.state, batch.episode_start)[0]
    return torch.distributions.Categorical(logits=logits).log_prob(batch.action)


def log_probs_of_logits(policy, batch):
    logits, _, _ = policy(batch.obs, batch.state, batch.episode_start)
    return logits.gather(-1, batch.action[..., None]).squeeze(-1)


def log_probs_from_zero(policy, batch):
    state = policy.initial_state(batch.action.shape[1])
    logits, _, _ = policy(batch.obs, state, batch.episode_start)
    return logits.log_softmax(-1).gather(-1, batch.action[..., None]).squeeze(-1)


def log_probs_without_resets(policy, batch):
    logits, _, _ = policy(batch.obs, batch.state, torch.zeros_like(batch.episode_start))
    return logits.log_softmax(-1).gather(-1, batch.action[..., None]).squeeze(-1)


@pytest.mark.parametrize(
    ("name", "answer", "sentence"),
    [
        ("td_error", td_error_by_loops, ""),
        ("td_error", td_error_without_mask, "The next episode's value leaks in"),
        ("td_error", td_error_with_the_next_mask, "Your mask uses d_{t+1}"),
        ("td_error", td_error_with_zero_at_the_end, "The value after the last step is last_value"),
        ("td_error", td_error_without_reward_at_the_end, "The mask removes the reward too"),
        ("gae_loop", gae_by_definition, ""),
        ("gae_loop", gae_forwards, "The loop runs forwards"),
        ("gae_loop", gae_across_ends, "Credit crosses the end"),
        ("gae_loop", gae_with_lambda_alone, "gamma is missing"),
        ("gae_loop", gae_of_two_steps, "This uses the next TD error only"),
        ("bootstrap", bootstrap_by_rows, ""),
        ("bootstrap", bootstrap_with_every_done_an_end, "A time-out is treated as an end"),
        ("bootstrap", bootstrap_from_the_next_episode, "At a time-out V_{t+1} is the value of the NEXT"),
        ("bootstrap", bootstrap_without_last_value, "The rollout's end is not an episode's end"),
        ("sequence_index", index_by_loops, ""),
        ("sequence_index", index_that_overlaps, "Sequences overlap"),
        ("sequence_index", index_exchanged, "Quotient and remainder are exchanged"),
        ("sequence_index", index_with_batch_first, "The axes are exchanged"),
        ("log_probs", log_probs_by_distribution, ""),
        ("log_probs", log_probs_of_logits, "Logits are not log-probabilities"),
        ("log_probs", log_probs_from_zero, "The sequences start from a state of zeros"),
        ("log_probs", log_probs_without_resets, "The memory is never cleared"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_mistake_gets_its_own_sentence(name, answer, sentence):
    status, found = examine(find(name), answer)
    assert found.startswith(sentence) and status == ("wrong" if sentence else "solved")
