"""CUDA graphs: what is recorded and when, with a recorder of torch's operations; on a GPU, the real ones."""

import copy
import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ppo_lib.accel.graphs import Graphed, attach_graphs
from ppo_lib.policy import make_policy
from ppo_lib.ppo import PPO, normalize_advantage
from ppo_lib.storage import Batch, RolloutStorage
from ppo_lib.train import Trainer


class Tape(TorchDispatchMode):
    """Keeps each operation with its operands: as in a CUDA graph, tensors are places and Python's numbers are fixed."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for operation, args, kwargs, result in self.calls:
            again = operation(*args, **kwargs)
            for place, new in zip(*(x if isinstance(x, (tuple, list)) else [x] for x in (result, again)), strict=True):
                if isinstance(new, torch.Tensor) and new.data_ptr() != place.data_ptr():
                    place.copy_(new)


def record(function, inputs):
    with Tape() as tape:
        outputs = function(*inputs)
    return outputs, tape.replay


def graphed(function, record=record):
    """Graphed over a function of tensors to a tuple."""
    made = Graphed(lambda _, *inputs: dict(enumerate(function(*inputs))), record)
    return made, lambda *inputs: tuple(made(None, *inputs).values())


def test_results_follow_the_inputs_and_weights():
    weight = torch.ones(3)
    made, call = graphed(lambda x, y: (x * weight + y, x.sum()))
    for scale in (1.0, 2.0, 3.0):
        weight.fill_(scale)
        x, y = torch.randn(2, 3)
        product, total = call(x, y)
        assert torch.equal(product, x * scale + y) and torch.equal(total, x.sum())
    assert made.enabled and len(made.recordings) == 1


def test_one_recording_per_shape_and_constant():
    recorded = []

    def counting(function, inputs):
        recorded.append(inputs[0].shape)
        return record(function, inputs)

    made = Graphed(lambda factor, x: {"x": x * factor}, counting)
    for _ in range(2):
        for n in (2, 3):
            for factor in (1.0, 5.0):
                assert torch.equal(made(factor, torch.ones(n))["x"], torch.full((n,), factor))
    assert recorded == [(2,), (2,), (3,), (3,)]


def test_a_result_can_be_an_input():
    made, call = graphed(lambda x, y: (x, x + y))
    for _ in range(2):
        same, added = call(torch.ones(2), torch.ones(2))
        assert made.enabled and same.tolist() == [1.0, 1.0] and added.tolist() == [2.0, 2.0]


def writes_one(function, inputs):
    """A recording that leaves out all results but the first, as where the others' kernels ran on another GPU."""
    outputs = function(*inputs)

    def replay():
        first = next(iter(outputs))
        outputs[first].copy_(function(*inputs)[first])

    return outputs, replay


def fails(function, inputs):
    raise RuntimeError("operation not permitted when stream is capturing")


def nothing(function, inputs):
    return function(*inputs), lambda: None


@pytest.mark.parametrize("bad", [writes_one, fails, nothing])
@pytest.mark.parametrize("small", [0.125, 0.0])
def test_a_recording_that_computes_otherwise_is_not_used(bad, small):
    """However small a result is beside the others, even where it is zero."""
    made, call = graphed(lambda x: (x + 10, small * x), bad)
    with pytest.warns(UserWarning, match="graphs are off"):
        assert call(torch.ones(2))[1].tolist() == [small] * 2
    assert not made.enabled and call(torch.full((2,), 2.0))[1].tolist() == [2 * small] * 2


def test_an_overflow_is_run_plainly_and_the_next_call_recorded():
    made, call = graphed(lambda x: (x.half() * 2,))
    for value, recordings in ((6e4, 0), (1.0, 1), (6e4, 1), (2.0, 1)):
        assert torch.equal(call(torch.tensor([value]))[0], torch.tensor([value]).half() * 2)
        assert made.enabled and len(made.recordings) == recordings


# --- PPO -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class ScaledBatch(Batch):
    scale: torch.Tensor = None  # behind the state


class ScaledPPO(PPO):
    """A loss of its own, with a field and a metric of its own."""

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        return loss * batch.scale.mean(), {**metrics, "scale": batch.scale.mean()}


def make_batch(policy, kind=Batch, recurrent=False, seed=0, **more):
    """A minibatch of 8 steps of random play."""
    generator = torch.Generator().manual_seed(seed)
    storage = RolloutStorage(4, 2, state_size=policy.state_size, sequence_length=2 if recurrent else None)
    storage.obs.random_(generator=generator)
    storage.action.random_(15, generator=generator)
    for name in ("log_prob", "value", "advantage", "return_"):
        getattr(storage, name).normal_(generator=generator)
    storage.log_prob.mul_(0.1).sub_(2.7)
    [batch] = storage.minibatches(1, generator)
    batch.advantage = normalize_advantage(batch.advantage)
    return kind(**vars(batch), **more)


def gradient(ppo, batch):
    """(metrics, gradients) as they are now."""
    metrics = ppo.gradient(batch)
    return metrics, [p.grad.clone() for p in ppo.policy.parameters()]


def assert_same(found, expected):
    assert found[0] == expected[0]
    for ours, its in zip(found[1], expected[1], strict=True):
        assert torch.equal(ours, its)


@pytest.fixture
def pair(tiny):
    """Two equal PPOs; the second is to be recorded."""

    def make(kind=PPO, recurrent=False):
        config = tiny(recurrent=recurrent)
        policy = make_policy(config)
        return kind(policy, config), kind(copy.deepcopy(policy), config)

    return make


@pytest.mark.parametrize("recurrent", [False, True])
def test_recorded_acting_and_gradients_are_the_plain_ones(pair, recurrent):
    """Bit by bit, with coefficients moved between the calls and metrics that outlive the next call."""
    plain, recorded = pair(recurrent=recurrent)
    act, learn = attach_graphs(recorded, record)
    kept = []
    for seed, clip_range in enumerate((0.2, 0.15, 0.1)):
        for ppo in (plain, recorded):
            ppo.coefficients.clip_range, ppo.coefficients.entropy_coef = clip_range, clip_range / 7
        batch = make_batch(plain.policy, recurrent=recurrent, seed=seed)
        expected = gradient(plain, batch)
        found = gradient(recorded, batch)
        assert_same(found, expected)
        kept.append((found, expected))
        obs = batch.obs.flatten(0, -4)[:2]
        state, start = plain.policy.initial_state(2), torch.ones(2, dtype=torch.bool)
        for ours, its in zip(recorded.act(obs, state, start), plain.act(obs, state, start), strict=True):
            assert torch.equal(ours, its)
    for found, expected in kept:
        assert_same(found, expected)
    assert act.enabled and learn.enabled and len(act.recordings) == len(learn.recordings) == 1
    recorded.coefficients.clip_value_loss = plain.coefficients.clip_value_loss = False
    assert_same(gradient(recorded, batch), gradient(plain, batch))
    assert len(learn.recordings) == 2


def test_a_slider_moved_while_a_recording_is_made_is_heard(pair):
    """What it sets stays set, and is not baked into the recording under the old value."""
    plain, recorded = pair()

    def slow(function, inputs):
        recorded.coefficients.clip_range = 0.05  # as a notebook's thread would, in the middle
        return record(function, inputs)

    _, learn = attach_graphs(recorded, slow)
    batch = make_batch(plain.policy)
    assert_same(gradient(recorded, batch), gradient(plain, batch))
    assert recorded.coefficients.clip_range == 0.05
    assert_same(gradient(recorded, batch), gradient_at(plain, batch, clip_range=0.05))
    recorded.coefficients.clip_range = 0.2
    assert_same(gradient(recorded, batch), gradient_at(plain, batch, clip_range=0.2))
    assert learn.enabled and len(learn.recordings) == 1


def gradient_at(ppo, batch, clip_range):
    ppo.coefficients.clip_range = clip_range
    return gradient(ppo, batch)


def test_a_subclass_with_its_own_field_and_metric_is_recorded(pair):
    plain, recorded = pair(ScaledPPO)
    _, learn = attach_graphs(recorded, record)
    for seed in range(2):
        batch = make_batch(plain.policy, ScaledBatch, seed=seed, scale=torch.full((8,), 1.0 + seed))
        found = gradient(recorded, batch)
        assert_same(found, gradient(plain, batch))
        assert found[0]["scale"] == 1 + seed
    assert learn.enabled and len(learn.recordings) == 1


def test_a_loss_that_looks_at_values_runs_plainly(pair):
    class Looking(PPO):
        def loss(self, batch):
            loss, metrics = super().loss(batch)
            return (loss if loss.item() > 0 else -loss), metrics

    plain, recorded = pair(Looking)
    _, learn = attach_graphs(recorded, record)
    batch = make_batch(plain.policy)
    with pytest.warns(UserWarning, match="not permitted"):
        found = gradient(recorded, batch)
    assert_same(found, gradient(plain, batch))
    assert not learn.enabled
    assert_same(gradient(recorded, batch), gradient(plain, batch))


def test_a_recording_without_one_parameters_gradient_is_not_used(pair):
    """Zeros for the gradient of a bias pass any check of all results' pooled norm."""
    _, recorded = pair()

    def forgetful(function, inputs):
        outputs, replay = record(function, inputs)
        smallest = min((k for k in outputs if isinstance(k, int)), key=lambda k: float(outputs[k].norm()))
        return outputs, lambda: (replay(), outputs[smallest].zero_())

    _, learn = attach_graphs(recorded, forgetful)
    with pytest.warns(UserWarning, match="another result"):
        recorded.gradient(make_batch(recorded.policy))
    assert not learn.enabled


def test_the_loss_scale_can_change(pair):
    plain, recorded = pair()
    for ppo in (plain, recorded):
        ppo.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    _, learn = attach_graphs(recorded, record)
    batch = make_batch(plain.policy)
    for scale in (8.0, 2.0, 4.0):
        for ppo in (plain, recorded):
            ppo.scaler.scale(torch.ones(()))
            ppo.scaler.update(scale)
        assert_same(gradient(recorded, batch), gradient(plain, batch))
    assert learn.enabled and len(learn.recordings) == 1


@pytest.mark.parametrize("recurrent", [False, True])
def test_training_with_recordings_computes_the_same(tiny, tmp_path, recurrent):
    """Whole updates: nothing that is recorded has a state of its own or results that must outlive the next call."""

    def train(recorded, folder):
        trainer = Trainer(tiny(recurrent=recurrent, total_steps=64, num_epochs=1), folder, progress=False)
        pair = attach_graphs(trainer.ppo, copying_record) if recorded else ()
        trainer.ppo.coefficients.clip_range = 0.15  # as a slider would
        trainer.train(lambda _: setattr(trainer.ppo.coefficients, "clip_range", 0.1))
        assert all(made.enabled and made.recordings for made in pair)
        trainer.close()
        return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])

    assert torch.equal(train(True, tmp_path / "a"), train(False, tmp_path / "b"))


def copying_record(function, inputs):
    """Results in fixed places, computed anew from the inputs' places: also of the C functions, which no tape sees."""
    outputs = {name: x.detach().clone() for name, x in function(*inputs).items()}

    def replay():
        for name, new in function(*inputs).items():
            outputs[name].copy_(new.detach())

    return outputs, replay


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_training_on_a_gpu_uses_its_graphs(tiny, tmp_path, recurrent, precision):
    trainer = Trainer(tiny(recurrent=recurrent, device="cuda", precision=precision), tmp_path / "run", progress=False)
    pair = attach_graphs(trainer.ppo)
    trainer.train()
    assert all(made.enabled and made.recordings for made in pair)
    trainer.close()


@pytest.mark.gpu
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_gpu_learns_what_a_cpu_learns(tiny, tmp_path, recurrent):
    """One update in float32 on the same rollout: equal weights up to the order of sums."""
    weights = []
    cpu = Trainer(tiny(recurrent=recurrent), tmp_path / "cpu", progress=False)
    gpu = Trainer(tiny(recurrent=recurrent, device="cuda"), tmp_path / "gpu", progress=False)
    cpu.storage.compute_advantages(cpu.collector.collect(cpu.storage), 0.999, 0.95)
    for name, value in vars(cpu.storage).items():
        if isinstance(value, torch.Tensor):
            setattr(gpu.storage, name, value.to("cuda"))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for trainer in (cpu, gpu):
        trainer.ppo.update(trainer.storage)
        weights.append(torch.cat([p.detach().cpu().flatten() for p in trainer.policy.parameters()]))
        trainer.close()
    torch.testing.assert_close(weights[0], weights[1], atol=2e-4, rtol=1e-3)
