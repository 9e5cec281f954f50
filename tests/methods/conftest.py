"""An agent of any method with a rollout, as in test_ppo."""

import pytest
import torch
from test_ppo import agent_with_rollout


@pytest.fixture
def agent():
    return agent_with_rollout


@pytest.fixture
def gradient():
    """The gradient of all parameters after gradient(batch), [parameters]."""

    def of(ppo, batch):
        ppo.gradient(batch)
        return torch.cat([p.grad.flatten().clone() for p in ppo.policy.parameters()])

    return of
