"""The exercises of notebook 03: TD error, bootstrap, GAE, sequence minibatches, recomputed log-probabilities.

Arrays are [T, N]: T steps of N games. In the cases T, N, L and B differ, and episodes end at the first, the last and
neighbouring steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppo_lib import storage
from ppo_lib.course.exercises import Exercise
from ppo_lib.model import GRUCore
from ppo_lib.storage import Batch

T, N = 7, 3
DONE = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.bool)


def arrays(*leading: int, seed: int = 0) -> Tensor:
    """Random numbers [*leading, T, N]."""
    return torch.randn(*leading, T, N, generator=torch.Generator().manual_seed(seed))


def next_values(value: Tensor, last_value: Tensor) -> Tensor:
    """The value of the observation after each step, [T, N]."""
    return torch.cat([value[1:], last_value[None]])


def td_error(reward: Tensor, value: Tensor, done: Tensor, last_value: Tensor, gamma: float) -> Tensor:
    """delta_t = r_t + gamma (1 - d_t) V_{t+1} - V_t, all [T, N]; last_value [N]."""
    return reward + gamma * (~done).float() * next_values(value, last_value) - value


def gae_loop(delta: Tensor, done: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """A_t = delta_t + gamma lambda (1 - d_t) A_{t+1}: of rewards delta and values 0."""
    zero = torch.zeros_like(delta)
    return storage.gae(delta, zero, done, zero[0], gamma, gae_lambda)[0]


def forward_sum(delta: Tensor, done: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """The sum over the past, which is wrong."""
    return gae_loop(delta.flip(0), done.flip(0), gamma, gae_lambda).flip(0)


def bootstrap(value: Tensor, last_value: Tensor, final_value: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
    """What is still expected after each step, [T, N]: 0 after an end, final_value at a time-out, else V_{t+1}."""
    expected = torch.where(truncated, final_value, next_values(value, last_value))
    return expected.where(~terminated, 0.0)


def bootstrap_cases() -> list[tuple]:
    """Ends and time-outs, the same step never both."""
    timeout = DONE & (torch.arange(N) != 1)
    return [(*arrays(1, seed=4), arrays(seed=5)[0], arrays(seed=6), DONE & ~timeout, timeout)]


def sequence_index(units: Tensor, num_envs: int, length: int) -> tuple[Tensor, Tensor]:
    """The steps [L, B] and environments [B] of the sequences with these indices [B], as in RolloutStorage.batch."""
    return units // num_envs * length + torch.arange(length)[:, None], units % num_envs


def wrong_index(start: Callable[[Tensor, int, int], Tensor], env: Callable[[Tensor, int], Tensor]) -> Callable:
    """sequence_index with another first step or environment."""
    return lambda units, n, length: (start(units, n, length) + torch.arange(length)[:, None], env(units, n))


def log_probs(policy: nn.Module, batch: Batch) -> Tensor:
    """log pi(a) of the batch's actions under the policy as it is now, [L, B]."""
    logits, _, _ = policy(batch.obs, batch.state, batch.episode_start)
    return logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)


def with_batch(**changes: Callable[[Batch], Tensor]) -> Callable:
    """log_probs of a batch with these fields changed."""
    return lambda policy, b: log_probs(policy, Batch(**{**vars(b), **{name: f(b) for name, f in changes.items()}}))


def chosen(scores: Callable[[Tensor], Tensor]) -> Callable:
    """The scores that the policy's logits give to the actions."""
    return lambda policy, b: scores(policy(b.obs, b.state, b.episode_start)[0]).gather(-1, b.action[..., None])[..., 0]


class TinyPolicy(nn.Module):
    """A recurrent policy with the interface of ActorCritic, whose features are the first 8 bytes of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.actor = GRUCore(8), nn.Linear(8, 4)

    def initial_state(self, n: int) -> Tensor:
        """Zeros [n, 8]."""
        return torch.zeros(n, 8)

    def forward(self, obs: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, state = self.core(obs.flatten(2)[..., :8].float() / 64, state, episode_start)
        return 5 * self.actor(features), features.sum(-1), state


def on_a_recorded_batch(answer: Callable, seed: int) -> Tensor:
    """The answer for a small recurrent policy and 5 sequences of 6 steps, some of them with episode ends."""
    policy, generator = TinyPolicy().requires_grad_(False), torch.Generator().manual_seed(seed)
    obs = torch.randint(256, (6, 5, 8, 8, 3), generator=generator, dtype=torch.uint8)
    action = torch.randint(4, (6, 5), generator=generator)
    start = torch.rand(6, 5, generator=generator) < 0.3
    empty = torch.zeros(6, 5)
    state = torch.randn(5, 8, generator=generator)
    return answer(policy, Batch(obs, action, empty, empty, empty, empty, start, state))


EXERCISES = [
    Exercise(
        name="td_error",
        title="TD error",
        difficulty=1,
        minutes=5,
        solution=td_error,
        cases=lambda: [(*arrays(2), DONE, arrays(seed=1)[0], 0.9)],
        mistakes={
            "The next episode's value leaks in: after an end, (1 - d_t) must remove V_{t+1}.": (
                lambda r, v, d, last, gamma: td_error(r, v, d & False, last, gamma)
            ),
            "Your mask uses d_{t+1}: step t's own end, d_t, cuts V_{t+1}.": (
                lambda r, v, d, last, gamma: td_error(r, v, torch.cat([d[1:], d[:1] & False]), last, gamma)
            ),
            "Your mask uses d_{t-1}, which says that step t begins an episode: an end at step t is d_t.": (
                lambda r, v, d, last, gamma: td_error(r, v, torch.cat([d[:1] & False, d[:-1]]), last, gamma)
            ),
            "Your mask is the wrong way round: V_{t+1} counts where the episode has not ended, ~done.": (
                lambda r, v, d, last, gamma: td_error(r, v, ~d, last, gamma)
            ),
            "The value after the last step is last_value, not 0: those episodes are still running.": (
                lambda r, v, d, last, gamma: td_error(r, v, d, 0 * last, gamma)
            ),
            "V_{t+1} is discounted: gamma is missing.": lambda r, v, d, last, gamma: td_error(r, v, d, last, 1.0),
            "The sign: what came, r + gamma V_{t+1}, minus what was expected, V_t.": (
                lambda r, v, d, last, gamma: -td_error(r, v, d, last, gamma)
            ),
            "The mask removes the reward too: the reward of an episode's last step counts, only V_{t+1} doesn't.": (
                lambda r, v, d, last, gamma: td_error(r * ~d, v, d, last, gamma)
            ),
        },
    ),
    Exercise(
        name="gae_loop",
        title="GAE, the loop",
        difficulty=2,
        minutes=10,
        solution=gae_loop,
        cases=lambda: [(arrays(), DONE, 0.9, 0.8)],
        mistakes={
            "The loop runs forwards: A_t needs A_{t+1}, so start at the last step.": forward_sum,
            "Credit crosses the end of an episode: multiply A_{t+1} by (1 - d_t).": (
                lambda delta, d, gamma, lam: gae_loop(delta, d & False, gamma, lam)
            ),
            "Your mask uses d_{t+1}: step t's own end, d_t, cuts A_{t+1}.": (
                lambda delta, d, gamma, lam: gae_loop(delta, torch.cat([d[1:], d[:1] & False]), gamma, lam)
            ),
            "Your mask is the wrong way round: A_{t+1} counts where the episode has not ended, ~done.": (
                lambda delta, d, gamma, lam: gae_loop(delta, ~d, gamma, lam)
            ),
            "lambda is missing: A_{t+1} is multiplied by gamma and lambda.": (
                lambda delta, d, gamma, lam: gae_loop(delta, d, gamma, 1.0)
            ),
            "gamma is missing: A_{t+1} is multiplied by gamma and lambda.": (
                lambda delta, d, gamma, lam: gae_loop(delta, d, 1.0, lam)
            ),
            "This uses the next TD error only: A_t needs the next advantage, which holds all later errors.": (
                lambda delta, d, gamma, lam: delta + gamma * lam * ~d * next_values(delta, 0 * delta[0])
            ),
        },
    ),
    Exercise(
        name="bootstrap",
        title="Bootstrap at the rollout's end and at a time-out",
        difficulty=2,
        minutes=10,
        solution=bootstrap,
        cases=bootstrap_cases,
        mistakes={
            "The rollout's end is not an episode's end: after the last step last_value is expected, not 0.": (
                lambda v, last, final, ended, out: bootstrap(v, 0 * last, final, ended, out)
            ),
            "A time-out is treated as an end: there the rewards would have continued, so final_value is expected.": (
                lambda v, last, final, ended, out: bootstrap(v, last, final, ended | out, out)
            ),
            "At a time-out V_{t+1} is the value of the NEXT episode's first observation: take final_value.": (
                lambda v, last, final, ended, out: bootstrap(v, last, final, ended, out & False)
            ),
            "After an end nothing more is expected: the next value is 0 where terminated.": (
                lambda v, last, final, ended, out: bootstrap(v, last, final, ended & False, out)
            ),
            "Ends and time-outs are exchanged: 0 where terminated, final_value where truncated.": (
                lambda v, last, final, ended, out: bootstrap(v, last, final, out, ended)
            ),
            "This is V_t: what is expected after step t is the value of the next observation, V_{t+1}.": (
                lambda v, last, final, ended, out: bootstrap(torch.cat([v[:1], v[:-1]]), v[-1], final, ended, out)
            ),
        },
    ),
    Exercise(
        name="sequence_index",
        title="Indices of sequence minibatches",
        difficulty=2,
        minutes=10,
        solution=sequence_index,
        cases=lambda: [(torch.tensor([10, 3, 7, 4]), 4, 5), (torch.arange(4), 2, 3)],
        mistakes={
            "Sequences overlap: the sequence after this one starts L steps later, so multiply by length.": (
                wrong_index(lambda u, n, length: u // n, lambda u, n: u % n)
            ),
            "Quotient and remainder are exchanged: the environment is units % N, the sequence units // N.": (
                wrong_index(lambda u, n, length: u % n * length, lambda u, n: u // n)
            ),
            "The axes are exchanged: the steps are [L, B], time first, as the GRU reads them.": (
                lambda u, n, length: (sequence_index(u, n, length)[0].T, u % n)
            ),
            "These are only the first steps: add arange(length)[:, None] for the L steps of each sequence.": (
                lambda u, n, length: (u // n * length, u % n)
            ),
            "Multiply the whole number u // N by L: u * L // N starts in the middle of a sequence.": (
                wrong_index(lambda u, n, length: u * length // n, lambda u, n: u % n)
            ),
        },
    ),
    Exercise(
        name="log_probs",
        title="Recompute the log-probabilities",
        difficulty=2,
        minutes=10,
        solution=log_probs,
        cases=lambda: [(0,)],
        run=on_a_recorded_batch,
        mistakes={
            "Logits are not log-probabilities: apply log_softmax over the actions.": chosen(lambda logits: logits),
            "These are probabilities: take their logarithm, with log_softmax.": (
                chosen(lambda logits: logits.softmax(-1))
            ),
            "softmax runs over the wrong axis: the actions are the last one.": (
                chosen(lambda logits: logits.log_softmax(0))
            ),
            "These are the most likely actions' log-probabilities: gather those of batch.action.": (
                lambda policy, b: policy(b.obs, b.state, b.episode_start)[0].log_softmax(-1).max(-1).values
            ),
            "The sequences start from a state of zeros: start from batch.state, as the rollout did.": (
                with_batch(state=lambda b: 0 * b.state)
            ),
            "The memory is never cleared: give the policy batch.episode_start.": (
                with_batch(episode_start=lambda b: b.episode_start & False)
            ),
            "The memory is cleared one step early: episode_start[t] belongs to step t, don't shift it.": (
                with_batch(episode_start=lambda b: torch.cat([b.episode_start[1:], b.episode_start[:1] & False]))
            ),
        },
    ),
]
