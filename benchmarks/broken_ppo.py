"""Three broken PPOs and a healthy one on the toy task `memory`: for notebook 04's exercise broken_runs.

    python benchmarks/broken_ppo.py  # writes results/broken-ppo/*.csv, a row per update; about a minute

Each broken PPO differs from the healthy one in a single mistake.
kl_before is the KL divergence between the stored and the recomputed policy before the first gradient step.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ppo_lib.course import toy
from ppo_lib.ppo import PPO, Metrics, ppo_loss
from ppo_lib.storage import Batch, RolloutStorage

FOLDER = Path("results/broken-ppo")
COLUMNS = ("steps", "return_mean", "entropy", "approx_kl", "kl_before", "clip_fraction", "explained_variance",
           "value_loss", "grad_norm")  # fmt: skip


class Healthy(PPO):
    """PPO that also measures kl_before."""

    def update(self, storage: RolloutStorage, between_steps: Callable[[], None] = lambda: None) -> dict[str, float]:
        with torch.no_grad():
            _, metrics = PPO.loss(self, storage.batch(torch.arange(storage.num_units)))
        return {**super().update(storage, between_steps), "kl_before": float(metrics["approx_kl"])}


class OldLogProb(Healthy):
    """The old log-probabilities are computed anew by the current policy, before every gradient step."""

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        logits, value, _ = self.policy(batch.obs, batch.state, batch.episode_start)
        log_prob = logits.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        return ppo_loss(logits, value, replace(batch, log_prob=log_prob.detach()), self.coefficients)


class Order(Healthy):
    """The advantages are stored environment by environment, everything else step by step."""

    def update(self, storage: RolloutStorage, between_steps: Callable[[], None] = lambda: None) -> dict[str, float]:
        storage.advantage = storage.advantage.T.reshape(storage.advantage.shape)
        return super().update(storage, between_steps)


class Mask(Healthy):
    """While training, the GRU's state is cleared one step early: before the last step of an episode."""

    def update(self, storage: RolloutStorage, between_steps: Callable[[], None] = lambda: None) -> dict[str, float]:
        storage.episode_start = storage.done.clone()
        return super().update(storage, between_steps)


def main() -> None:
    """Train the four and write their files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    config = toy.toy_config(recurrent=True, total_steps=32_000, seed=1)
    for name, algorithm in {"healthy": Healthy, "a": OldLogProb, "b": Order, "c": Mask}.items():
        _, curve = toy.train("memory", config, algorithm(toy.tiny_policy(config), config))
        with (FOLDER / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(zip(*([f"{x:.5g}" for x in curve[column]] for column in COLUMNS), strict=True))
        print(f"{name}: return {curve['return_mean'][-5:].mean():.2f} in the last five updates")


if __name__ == "__main__":
    main()
