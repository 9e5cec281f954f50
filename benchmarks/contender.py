"""One contender of the comparison, in a process of its own: trains on StarPilot and prints one line of JSON.

- ppo_lib: as `python -m ppo_lib train` does it, with the precision of `--precision`.
- textbook: the same program in float32, NCHW, one game step after the other, whole minibatches, default malloc.
- sb3: Stable-Baselines3's PPO with its own storage, loop and optimiser; only network, games and sizes are given.

The last two run the network with torch's layers. All play 64 environments x 256 steps with 3 epochs of 8 minibatches,
with the settings of the preset `paper`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ppo_lib.accel import hardware
from ppo_lib.accel.bench import peak_memory_gb
from ppo_lib.config import PPOConfig, preset
from ppo_lib.envs import make_env
from ppo_lib.train import Trainer


def train_with_ppo_lib(config: PPOConfig, updates: int, textbook: bool) -> float:
    """Seconds that `updates` updates took, after one to warm up."""
    if textbook:
        hardware.prepare_memory = lambda: None
        hardware.attach = lambda *_: ""
        hardware.CPU_MICRO_BATCH = config.minibatch_size
        config = config.replace(precision="float32")
    config = config.replace(total_steps=config.batch_size * (updates + 1), eval_interval=-1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "run", overlap=not textbook, progress=False)
        if textbook:
            trainer.policy.to(memory_format=torch.contiguous_format)
            trainer.policy.encoder.blocks.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        stamps = []
        trainer.train(lambda _: stamps.append(time.perf_counter()))
        trainer.close()
    return stamps[-1] - stamps[0]


def train_with_sb3(config: PPOConfig, updates: int) -> float:
    """Seconds that `updates` rollouts and updates of Stable-Baselines3 took."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import VecEnv

    from ppo_lib.model import FEATURES, ImpalaEncoder

    class Games(VecEnv):
        """Our vector environment behind SB3's interface."""

        def __init__(self) -> None:
            self.env = make_env(config)
            super().__init__(config.num_envs, self.env.single_observation_space, self.env.single_action_space)

        def reset(self) -> np.ndarray:
            return self.env.reset()[0]

        def step_async(self, actions: np.ndarray) -> None:
            self.env.step_async(actions)

        def step_wait(self) -> tuple:
            obs, reward, terminated, truncated, _ = self.env.step_wait()
            done = terminated | truncated
            infos = [{"terminal_observation": obs[i]} if done[i] else {} for i in range(self.num_envs)]
            return obs, reward, done, infos

        def close(self) -> None:
            self.env.close()

        def get_attr(self, name: str, indices: object = None) -> list:
            return [getattr(self.env, name, None)] * self.num_envs

        set_attr = env_method = env_is_wrapped = get_attr  # VecEnv demands them; PPO calls none of them

    class Extractor(BaseFeaturesExtractor):
        """Our encoder's layers on SB3's float images [B, C, H, W] in [0, 1], in its own memory format."""

        def __init__(self, space: object) -> None:
            super().__init__(space, FEATURES)
            encoder = ImpalaEncoder().to(memory_format=torch.contiguous_format)
            self.blocks, self.linear = encoder.blocks, encoder.linear

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.blocks(x).relu().flatten(1)).relu()

    agent = PPO(
        "CnnPolicy", Games(), learning_rate=config.learning_rate, n_steps=config.num_steps,
        batch_size=config.minibatch_size, n_epochs=config.num_epochs, gamma=config.gamma,
        gae_lambda=config.gae_lambda, clip_range=config.clip_range, clip_range_vf=config.clip_range,
        ent_coef=config.entropy_coef, vf_coef=config.value_coef, max_grad_norm=config.max_grad_norm,
        policy_kwargs={"features_extractor_class": Extractor, "net_arch": []}, device="auto",
    )  # fmt: skip
    # one update costs minutes: the first is timed, too, since SB3 has nothing to warm up
    agent.learn(updates * config.batch_size)
    return (time.time_ns() - agent.start_time) / 1e9  # SB3's own clock, from before its first rollout


def main() -> None:
    """Run the contender that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("ppo_lib", "textbook", "sb3"))
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--recurrent", action="store_true")
    options = parser.parse_args()
    config = preset("paper", precision=options.precision, recurrent=options.recurrent)
    if options.name == "sb3":
        seconds = train_with_sb3(config, options.updates)
    else:
        seconds = train_with_ppo_lib(config, options.updates, textbook=options.name == "textbook")
    rate = options.updates * config.batch_size / seconds
    print(json.dumps({"name": options.name, "steps_per_second": rate, "peak_memory_gb": peak_memory_gb()}))


if __name__ == "__main__":
    main()
