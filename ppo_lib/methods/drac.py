"""DrAC: PPO whose policy and value are regularised to ignore a random crop. Source: Raileanu et al., 2006.12862.

With a crop f, the policy pi and the value V of the current network:

    loss = PPO's + drac_coef * mean( KL(pi(.|s) || pi(.|f(s))) + (V(s) - V(f(s)))^2 )

- pi(.|s) and V(s) are constants in the added terms: they pull the output on the crop towards that on the image.
- The crop: an image of 64 pixels is padded with 12 on each side, which repeat its border, and cut back to 64 at a
  random place; other sizes in proportion. For a GRU, the images of a sequence are cut at the same place.
- Two forward and backward passes per step instead of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppo_lib.ppo import PPO, Metrics, ppo_loss
from ppo_lib.storage import Batch


@dataclass
class CroppedBatch(Batch):
    """A minibatch and where its images are cut."""

    shift: Tensor  # pixels down and to the right, int64 [..., 2]


def crop(obs: Tensor, shift: Tensor) -> Tensor:
    """Images [..., H, W, C], moved by shift [..., 2] pixels; what enters repeats the border."""
    images, (down, right) = obs.flatten(0, -4), shift.flatten(0, -2).unbind(-1)
    rows, columns = (
        (torch.arange(size, device=obs.device) + by[:, None]).clamp(0, size - 1)
        for size, by in zip(images.shape[1:3], (down, right), strict=True)
    )
    first = torch.arange(len(images), device=obs.device)[:, None, None]
    return images[first, rows[:, :, None], columns[:, None, :]].view_as(obs)


class DrAC(PPO):
    """PPO with two terms that make it invariant to crops."""

    def prepare(self, batch: Batch) -> CroppedBatch:
        """Draw the places of the crops."""
        most = batch.obs.shape[-2] * 12 // 64
        shift = torch.randint(-most, most + 1, (len(batch), 2), generator=self.batch_generator)
        return CroppedBatch(**vars(batch), shift=shift.to(self.device).expand(*batch.action.shape, 2))

    def loss(self, batch: CroppedBatch) -> tuple[Tensor, Metrics]:
        """PPO's loss and the two terms, which are also metrics."""
        logits, value, _ = self.policy(batch.obs, batch.state, batch.episode_start)
        loss, metrics = ppo_loss(logits, value, batch, self.coefficients)
        obs = crop(batch.obs, batch.shift)
        cropped_logits, cropped_value, _ = self.policy(obs, batch.state, batch.episode_start)
        log_p, log_q = logits.detach().log_softmax(-1), cropped_logits.log_softmax(-1)
        crop_kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()  # torch's order: KL(p || q)
        crop_value_loss = (value.detach() - cropped_value).square().mean()
        loss = loss + self.config.drac_coef * (crop_kl + crop_value_loss)
        return loss, {**metrics, "crop_kl": crop_kl, "crop_value_loss": crop_value_loss}
