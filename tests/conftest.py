"""Fixtures that many test files share."""

import os

# Several workers test side by side, and tiny networks are slower on two threads than on one. For all that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from ppo_lib.config import PPOConfig


@pytest.fixture(autouse=True)
def _one_thread():
    """The few tests that ask for more threads leave none behind."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    """Make a config of the real game small enough for a test: 4 environments x 16 steps an update."""

    def make(**changes):
        fields = dict(
            num_envs=4, num_steps=16, num_minibatches=2, num_epochs=2, sequence_length=8, total_steps=128,
            eval_interval=-1, eval_episodes=4, checkpoint_interval=64, device="cpu", precision="float32",
        )  # fmt: skip
        return PPOConfig(**{**fields, **changes})

    return make


def pytest_collection_modifyitems(items):
    """Tests marked gpu run where torch finds a CUDA GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="this machine has no CUDA GPU"))
