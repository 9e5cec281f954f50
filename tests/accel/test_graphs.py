"""CUDA graphs: their bookkeeping with a stand-in for the recording on any machine, the real thing on a GPU."""

import pytest
import torch

from ppo_lib.accel.graphs import Graphed
from ppo_lib.train import Trainer


def fake_record(function, inputs):
    """Like a CUDA graph: results in fixed places, recomputed from the inputs' places by each replay."""
    outputs = tuple(x.clone() for x in function(*inputs))

    def replay():
        for place, new in zip(outputs, function(*inputs), strict=True):
            place.copy_(new)

    return outputs, replay


def test_results_follow_the_inputs_and_weights():
    weight = torch.ones(3)
    graphed = Graphed(lambda x, y: (x * weight + y, x.sum()), True, record=fake_record)
    for scale in (1.0, 2.0):
        weight.fill_(scale)
        for n in (3, 3):
            x, y = torch.randn(2, n), torch.randn(2, n)
            product, total = graphed(x, y)
            assert torch.equal(product, x * scale + y) and torch.equal(total, x.sum())


def test_one_recording_for_each_shape_and_new_ones_when_a_constant_changes():
    constant, recorded = [1.0], []

    def record(function, inputs):
        recorded.append(inputs[0].shape)
        return fake_record(function, inputs)

    graphed = Graphed(lambda x: (x * constant[0],), True, lambda: constant[0], record=record)
    for n in (2, 3, 2, 3):
        assert torch.equal(graphed(torch.ones(n))[0], torch.ones(n))
    assert recorded == [(2,), (3,)]
    constant[0] = 5.0
    assert graphed(torch.ones(2))[0].tolist() == [5.0, 5.0]
    assert len(recorded) == 3 and len(graphed.recordings) == 1


def test_a_recording_that_computes_otherwise_is_not_used():
    def record(function, inputs):
        return (torch.zeros(2),), lambda: None

    graphed = Graphed(lambda x: (x + 1,), True, record=record)
    with pytest.warns(UserWarning, match="graphs are off"):
        assert graphed(torch.ones(2))[0].tolist() == [2.0, 2.0]
    assert not graphed.enabled and graphed(torch.zeros(2))[0].tolist() == [1.0, 1.0]


def test_a_recording_that_replays_nothing_is_not_used():
    """As where the kernels ran at once on another GPU than the one that recorded."""
    graphed = Graphed(lambda x: (2 * x,), True, record=lambda function, inputs: (function(*inputs), lambda: None))
    with pytest.warns(UserWarning, match="graphs are off"):
        assert graphed(torch.ones(2))[0].tolist() == [2.0, 2.0]
    assert not graphed.enabled and graphed(torch.full((2,), 5.0))[0].tolist() == [10.0, 10.0]


def test_a_result_can_be_an_input():
    graphed = Graphed(lambda x, y: (x, x + y), True, record=fake_record)
    same, added = graphed(torch.ones(2), torch.ones(2))
    assert graphed.enabled and same.tolist() == [1.0, 1.0] and added.tolist() == [2.0, 2.0]


def test_a_recording_that_fails_is_not_used():
    def record(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = Graphed(lambda x: (x + 1,), True, record=record)
    with pytest.warns(UserWarning, match="not permitted"):
        assert graphed(torch.ones(2))[0].tolist() == [2.0, 2.0]


def train_with(recorded, config, folder):
    """Train with recordings or without; returns all weights."""
    trainer = Trainer(config, folder, progress=False)
    if recorded:
        for graphed in (trainer.ppo._act, trainer.ppo._learn):
            graphed.enabled, graphed.record = True, fake_record
    trainer.ppo.coefficients.clip_range = 0.15  # as a slider would
    trainer.train(lambda _: setattr(trainer.ppo.coefficients, "clip_range", 0.1))
    assert all(graphed.enabled == recorded for graphed in (trainer.ppo._act, trainer.ppo._learn))
    trainer.close()
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


@pytest.mark.parametrize("recurrent", [False, True])
def test_training_with_recordings_computes_the_same(tiny, tmp_path, recurrent):
    """The functions that are recorded have no state, no randomness and no results that outlive the next call."""
    config = tiny(recurrent=recurrent)
    assert torch.equal(train_with(True, config, tmp_path / "a"), train_with(False, config, tmp_path / "b"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_training_on_a_gpu_uses_its_graphs(tiny, tmp_path, recurrent, precision):
    trainer = Trainer(tiny(recurrent=recurrent, device="cuda", precision=precision), tmp_path / "run", progress=False)
    trainer.train()
    assert trainer.ppo._act.enabled and trainer.ppo._learn.enabled
    assert trainer.ppo._act.recordings and trainer.ppo._learn.recordings
    trainer.close()


@pytest.mark.gpu
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_gpu_learns_what_a_cpu_learns(tiny, tmp_path, recurrent):
    """One update in float32 on the same rollout: equal weights up to the order of sums."""
    weights = []
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    cpu = Trainer(tiny(recurrent=recurrent), tmp_path / "cpu", progress=False)
    gpu = Trainer(tiny(recurrent=recurrent, device="cuda"), tmp_path / "gpu", progress=False)
    cpu.storage.estimate(cpu.collect(), 0.999, 0.95)
    for name, value in vars(cpu.storage).items():
        if isinstance(value, torch.Tensor):
            setattr(gpu.storage, name, value.to("cuda"))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for trainer in (cpu, gpu):
        trainer.ppo.optimize(trainer.storage)
        weights.append(torch.cat([p.detach().cpu().flatten() for p in trainer.policy.parameters()]))
        trainer.close()
    torch.testing.assert_close(weights[0], weights[1], atol=2e-4, rtol=1e-3)
