"""Exercises of notebook 07: average pooling in the encoder, mixreg's batch, and a method of one's own.

- The method mirrors the screen top to bottom. StarPilot's rules don't change then, if up and down change places in the
  actions, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppo_lib.course.exercises import Exercise
from ppo_lib.course.toy import FEATURES, tiny_policy, toy_config
from ppo_lib.ppo import PPO, Metrics, ppo_loss
from ppo_lib.storage import Batch


def average_pooling(x: Tensor) -> Tensor:
    """Output of the last IMPALA block [B, C, H, W] -> what the linear layer reads [B, C]; see model.ImpalaEncoder."""
    return F.relu(x).mean((2, 3))


def mix_batch(batch: Batch, partner: Tensor, share: Tensor) -> dict[str, Tensor]:
    """The mixed value, advantage, return_, action and log_prob of a batch of steps, each [B]; see methods.mixreg.

    partner: int64 [B], of each step; share: float [B], of the step itself.
    """
    return _mix(batch, partner, share)


class MirrorPPO(PPO):
    """PPO whose policy learns to act on a mirrored image as on the image, with up and down exchanged."""

    weight = 0.1

    @staticmethod
    def exchange(x: Tensor) -> Tensor:
        """Exchange up and down in the last axis [..., 15]: 3 x 3 moves, whose inner axis is down, none, up; the rest
        fire."""
        return torch.cat([x[..., :9].unflatten(-1, (3, 3)).flip(-1).flatten(-2), x[..., 9:]], -1)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """PPO's loss + weight * mean KL(exchanged pi(.|s) || pi(.|mirrored s)), whose first part is constant."""
        logits, value, _ = self.policy(batch.obs, batch.state, batch.episode_start)
        loss, metrics = ppo_loss(logits, value, batch, self.coefficients)
        mirror_logits, _, _ = self.policy(batch.obs.flip(-3), batch.state, batch.episode_start)
        mirror_kl = _kl(self.exchange(logits.detach()), mirror_logits).mean()
        return loss + self.weight * mirror_kl, {**metrics, "mirror_kl": mirror_kl}


def _mix(
    batch: Batch, partner: Tensor, share: Tensor, linear: str = "value advantage return_",
    chosen: str = "action log_prob", own: str = "", flip: bool = False, smaller: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """mix_batch, with other fields mixed, chosen or unchanged, with shares exchanged or the smaller one's action."""
    part, first = 1 - share if flip else share, (share >= 0.5) != smaller
    pairs = {name: (getattr(batch, name), getattr(batch, name)[partner]) for name in vars(batch)}
    mixed = {name: part * pairs[name][0] + (1 - part) * pairs[name][1] for name in linear.split()}
    mixed |= {name: torch.where(first, *pairs[name]) for name in chosen.split()}
    return mixed | {name: pairs[name][0] for name in own.split()}


def _sorted(answer: Callable, *case: Tensor) -> object:
    """The fields in one order, so that an answer may have them in any."""
    found = answer(*case)
    return dict(sorted(found.items())) if isinstance(found, dict) else found


def _kl(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) in nats for each step, [B]."""
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _wrong(
    axis: int = -3, kl: Callable = lambda p, q: _kl(p.detach(), q), exchange: Callable = MirrorPPO.exchange,
    mean: Callable = torch.mean, weight: float = MirrorPPO.weight,
) -> type[PPO]:  # fmt: skip
    """MirrorPPO with one part replaced."""

    class Wrong(PPO):
        def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
            logits, value, _ = self.policy(batch.obs, batch.state, batch.episode_start)
            loss, metrics = ppo_loss(logits, value, batch, self.coefficients)
            mirrored = self.policy(batch.obs.flip(axis), batch.state, batch.episode_start)[0]
            return loss + weight * mean(kl(exchange(logits), mirrored)), metrics

    return Wrong


def _batch(steps: int = 16, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    obs = torch.randint(256, (steps, 8, 8, 3), generator=random, dtype=torch.uint8)
    log_prob, *numbers = torch.randn(4, steps, generator=random)
    named = dict(zip(("value", "advantage", "return_"), numbers, strict=True))
    action = torch.randint(15, (steps,), generator=random)
    start = torch.zeros(steps, dtype=torch.bool)
    return Batch(obs, action, log_prob - 3, episode_start=start, state=torch.zeros(steps, 0), **named)


def _mix_case(steps: int, seed: int) -> tuple[Batch, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return _batch(steps, seed), torch.randperm(steps, generator=random), torch.rand(steps, generator=random)


def _gradient(method: type[PPO], seed: int) -> dict[str, Tensor]:
    """The loss of a small random policy, and its gradient."""
    config = toy_config(seed=seed)
    policy = tiny_policy(config)
    policy.actor, random = nn.Linear(FEATURES, 15), torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.data.normal_(std=0.1, generator=random)
    loss, _ = method(policy, config).loss(_batch(seed=seed))
    loss.backward()
    gradients = [part.weight.grad.flatten() for part in (policy.encoder, policy.actor)]
    return {"loss": loss.detach(), "gradient": 100 * torch.cat(gradients)}  # 100: far above rounding


EXERCISES = [
    Exercise(
        "average_pooling", "Average pooling in the encoder", 1, 5, average_pooling,
        lambda: [(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)),) for size in ((4, 6), (8, 8))],
        {
            "the ReLU comes after the mean: ppo_lib applies it to every cell, before averaging.":
                lambda x: F.relu(x.mean((2, 3))),
            "the ReLU before the mean is missing: the last block ends with a sum, which can be negative.":
                lambda x: x.mean((2, 3)),
            "this is the sum over the cells, not the mean.": lambda x: F.relu(x).sum((2, 3)),
            "this is the maximum over the cells, not the mean.": lambda x: F.relu(x).amax((2, 3)),
            "this flattens the maps: [B, C * H * W]. Average each one to a single number.":
                lambda x: F.relu(x).flatten(1),
            "the mean runs over the channels: average over height and width, axes 2 and 3.":
                lambda x: F.relu(x).mean(1),
            "only one of the two axes of the image is averaged.": lambda x: F.relu(x).mean(3),
            "two axes of length 1 are left over: [B, C, 1, 1] should be [B, C].":
                lambda x: F.relu(x).mean((2, 3), keepdim=True),
        },
    ),
    Exercise(
        "mix_batch", "mixreg's batch", 2, 10, mix_batch, lambda: [_mix_case(12, 2), _mix_case(9, 3)],
        {
            "the shares are exchanged: share is that of the step itself, 1 - share that of its partner.":
                partial(_mix, flip=True),
            "this takes the action of the smaller share.": partial(_mix, smaller=True),
            "the action stays the step's own: where the partner has the larger share, take the partner's.":
                partial(_mix, chosen="", own="action log_prob"),
            "log_prob stays the step's own: it must be that of the chosen action.":
                partial(_mix, chosen="action", own="log_prob"),
            "log_prob is mixed: it must be that of the chosen action.":
                partial(_mix, linear="value advantage return_ log_prob", chosen="action"),
            "the action is mixed: an action is a label, and the mean of labels 2 and 8 isn't an action between them.":
                partial(_mix, linear="value advantage return_ action", chosen="log_prob"),
            "the advantage isn't mixed.": partial(_mix, linear="value return_", own="advantage"),
            "the value isn't mixed: it is the old value, around which the value loss is clipped.":
                partial(_mix, linear="advantage return_", own="value"),
        },
        _sorted,
    ),
    Exercise(
        "MirrorPPO", "A method of your own", 3, 20, MirrorPPO, lambda: [(1,), (2,)],
        {
            "the image is mirrored left to right: in [..., H, W, C] the height is axis -3.": _wrong(axis=-2),
            "the order of the steps is reversed, not the image: flip axis -3.": _wrong(axis=0),
            "up and down aren't exchanged in the actions.": _wrong(exchange=lambda logits: logits),
            "both sides are trained: detach the policy on the image, which is the target.": _wrong(kl=_kl),
            "the wrong side is detached: this pulls the policy on the image towards that on the mirrored one.":
                _wrong(kl=lambda p, q: _kl(p, q.detach())),
            "the KL divergence is the wrong way round: weight log p - log q with p, the policy on the image.":
                _wrong(kl=lambda p, q: _kl(q, p.detach())),
            "the mean runs over the actions, too: sum over them, then average over the steps.":
                _wrong(mean=lambda kl: kl.mean() / 15),
            "the term is subtracted: the loss is minimised, so add what should be small.": _wrong(weight=-0.1),
        },
        _gradient,
    ),
]  # fmt: skip
