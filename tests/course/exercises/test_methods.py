"""The exercises of notebook 07: right answers in several forms, and the mistakes as a student would write them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from exercise_answers import each_gets_its_sentence

from ppo_lib.config import preset
from ppo_lib.course import toy
from ppo_lib.course.exercises import examine, find
from ppo_lib.course.exercises.methods import MirrorPPO, average_pooling, mix_batch
from ppo_lib.methods.mixreg import Mixreg
from ppo_lib.policy import make_policy
from ppo_lib.ppo import PPO, normalize_advantage, ppo_loss
from ppo_lib.runs import read_metrics
from ppo_lib.storage import Batch
from ppo_lib.train import Trainer
from ppo_lib.video import action_labels


def mix_in_a_loop(batch, partner, share):
    """One step after the other, and the fields in another order."""
    fields = {name: [] for name in ("action", "log_prob", "value", "return_", "advantage")}
    for i, (j, x) in enumerate(zip(partner.tolist(), share.tolist(), strict=True)):
        for name in ("value", "advantage", "return_"):
            numbers = getattr(batch, name)
            fields[name].append(numbers[i] * x + numbers[j] * (1 - x))
        for name in ("action", "log_prob"):
            fields[name].append(getattr(batch, name)[i if x >= 0.5 else j])
    return {name: torch.stack(numbers) for name, numbers in fields.items()}


def mix(exchanged=False, smaller=False, **wrong):
    """A batch as students mix it; wrong: the field -> "own", or "linear"."""

    def mix_batch(batch, partner, share):
        other, mixed = SimpleNamespace(**{name: x[partner] for name, x in vars(batch).items()}), {}
        part = 1 - share if exchanged else share
        for name in ("value", "advantage", "return_"):
            mixed[name] = part * getattr(batch, name) + (1 - part) * getattr(other, name)
        larger = part < 0.5 if smaller else share >= 0.5
        for name in ("action", "log_prob"):
            mixed[name] = torch.where(larger, getattr(batch, name), getattr(other, name))
        for name, how in wrong.items():
            linear = part * getattr(batch, name) + (1 - part) * getattr(other, name)
            mixed[name] = getattr(batch, name) if how == "own" else linear
        return mixed

    return mix_batch


class ByLoop(PPO):
    """The right answer, with an index for the actions and F.kl_div."""

    weight = 0.1

    def loss(self, batch):
        logits, value, _ = self.policy(batch.obs, batch.state, batch.episode_start)
        loss, metrics = ppo_loss(logits, value, batch, self.coefficients)
        upside_down = torch.flip(batch.obs, [1])
        mirrored = self.policy(upside_down, batch.state, batch.episode_start)[0]
        with torch.no_grad():
            target = logits.softmax(-1)[:, [2, 1, 0, 5, 4, 3, 8, 7, 6, 9, 10, 11, 12, 13, 14]]
        kl = F.kl_div(mirrored.log_softmax(-1), target, reduction="batchmean")
        return loss + self.weight * kl, {**metrics, "kl": kl}


def mirror(flip=(1,), exchange=True, detach="target", reverse=False, reduction="batchmean", sign=1):
    """A method with one thing wrong."""

    class Method(PPO):
        def loss(self, batch):
            logits, value, _ = self.policy(batch.obs, batch.state, batch.episode_start)
            loss, metrics = ppo_loss(logits, value, batch, self.coefficients)
            mirrored = self.policy(batch.obs.flip(flip), batch.state, batch.episode_start)[0]
            target = MirrorPPO.exchange(logits) if exchange else logits
            target = target.detach() if detach == "target" else target
            mirrored = mirrored.detach() if detach == "mirrored" else mirrored
            pair = [mirrored.log_softmax(-1), target.log_softmax(-1)]
            kl = F.kl_div(*(pair[::-1] if reverse else pair), log_target=True, reduction=reduction)
            return loss + sign * 0.1 * kl, metrics

    return Method


class WithoutAdvantages(MirrorPPO):
    """A mistake without a sentence of its own."""

    def loss(self, batch):
        return super().loss(replace(batch, advantage=0 * batch.advantage))


ANSWERS = [
    ("average_pooling", lambda x: x.clamp(min=0).flatten(2).mean(-1), ""),
    ("average_pooling", lambda x: F.adaptive_avg_pool2d(x.relu(), 1).flatten(1), ""),
    ("average_pooling", lambda x: x.mean(-1).mean(-1).relu(), "after the mean"),
    ("average_pooling", lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), "ReLU before the mean is missing"),
    ("average_pooling", lambda x: x.relu().flatten(2).sum(2), "the sum"),
    ("average_pooling", lambda x: x.relu().flatten(2).max(2).values, "maximum"),
    ("average_pooling", lambda x: x.relu().reshape(len(x), -1), "flattens"),
    ("average_pooling", lambda x: x.relu().mean(1), "over the channels"),
    ("average_pooling", lambda x: x.relu().mean(-1), "only one of the two axes"),
    ("average_pooling", lambda x: F.adaptive_avg_pool2d(x.relu(), 1), "length 1"),
    ("mix_batch", mix_in_a_loop, ""),
    ("mix_batch", mix(), ""),
    ("mix_batch", mix(exchanged=True), "shares are exchanged"),
    ("mix_batch", mix(smaller=True), "smaller share"),
    ("mix_batch", mix(action="own", log_prob="own"), "the action stays"),
    ("mix_batch", mix(log_prob="own"), "log_prob stays"),
    ("mix_batch", mix(log_prob="linear"), "log_prob is mixed"),
    ("mix_batch", mix(action="linear"), "a label"),
    ("mix_batch", mix(advantage="own"), "the advantage isn't mixed"),
    ("mix_batch", mix(value="own"), "the value isn't mixed"),
    ("MirrorPPO", ByLoop, ""),
    ("MirrorPPO", mirror(), ""),
    ("MirrorPPO", mirror(flip=(2,)), "left to right"),
    ("MirrorPPO", mirror(flip=(0,)), "order of the steps"),
    ("MirrorPPO", mirror(exchange=False), "up and down aren't exchanged"),
    ("MirrorPPO", mirror(detach=""), "both sides are trained"),
    ("MirrorPPO", mirror(detach="mirrored"), "wrong side is detached"),
    ("MirrorPPO", mirror(reverse=True), "wrong way round"),
    ("MirrorPPO", mirror(reduction="mean"), "over the actions, too"),
    ("MirrorPPO", mirror(sign=-1), "subtracted"),
]  # fmt: skip


@pytest.mark.parametrize("name", ["average_pooling", "mix_batch", "MirrorPPO"])
def test_each_answer_gets_its_sentence(name):
    """Right answers are solved, wrong ones named, and every sentence of the package is shown."""
    each_gets_its_sentence(name, [(answer, words) for of, answer, words in ANSWERS if of == name])


def test_an_unknown_mistake_is_told_by_what_differs():
    assert examine(find("MirrorPPO"), WithoutAdvantages)[1].startswith("'loss' is ")
    assert "a dict with the keys" in examine(find("mix_batch"), lambda batch, partner, share: share)[1]


def test_the_exchange_swaps_up_and_down_in_the_games_actions():
    labels = action_labels("starpilot")
    exchanged = [labels[i] for i in MirrorPPO.exchange(torch.arange(15)).tolist()]
    swap = {"UP": "DOWN", "DOWN": "UP"}
    assert exchanged == ["+".join(swap.get(part, part) for part in label.split("+")) for label in labels]


def test_the_pooling_is_the_encoders():
    encoder = make_policy(preset("paper", pooling="average")).encoder
    obs = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        maps = encoder.blocks(obs.permute(0, 3, 1, 2).float() / 255)
        torch.testing.assert_close(F.relu(encoder.linear(average_pooling(maps))), encoder(obs))


def test_the_batch_is_mixregs():
    """Of the partners and shares that it drew."""
    config = toy.toy_config(algorithm="mixreg")
    mixreg, [numbers] = Mixreg(toy.tiny_policy(config), config), torch.randn(1, 4, 32)
    named = dict(zip(("value", "advantage", "return_", "log_prob"), numbers, strict=True))
    ids = torch.arange(32)  # an observation that names its step
    batch = Batch(ids, ids % 4, episode_start=ids > 99, state=torch.zeros(32, 0), **named)
    batch.advantage = normalize_advantage(batch.advantage)
    mixed = mixreg.prepare(batch)
    for name, expected in mix_batch(batch, mixed.partner_obs, mixed.share).items():
        torch.testing.assert_close(getattr(mixed, name), expected)
    assert (mixed.action != batch.action).any()


def test_the_method_trains(tiny, tmp_path):
    """On the real game; its metric is a column of metrics.csv."""
    with closing(Trainer(tiny(recurrent=False), tmp_path / "run", algorithm=MirrorPPO, progress=False)) as trainer:
        assert trainer.train()
    assert (read_metrics(tmp_path / "run")["mirror_kl"] > 0).all()
