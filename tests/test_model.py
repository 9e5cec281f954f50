"""The encoder and the GRU core: shapes, counts, initialisation, and episode starts."""

import math

import pytest
import torch
from torch import nn

from ppo_lib.model import (
    ENCODER_GAIN,
    FEATURES,
    GRUCore,
    ImpalaBlock,
    ImpalaEncoder,
    ResidualBlock,
    glorot_init,
    orthogonal_init,
)


def test_residual_skip_carries_x_not_relu_of_x():
    block = ResidualBlock(4)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_block_halves_and_rounds_up():
    assert ImpalaBlock(3, 16)(torch.zeros(1, 3, 64, 64)).shape == (1, 16, 32, 32)
    assert ImpalaBlock(3, 16)(torch.zeros(1, 3, 7, 9)).shape == (1, 16, 4, 5)


@pytest.mark.parametrize("width_scale", [1, 2])
@pytest.mark.parametrize("obs_shape", [(64, 64, 3), (9, 7, 1)])
def test_encoder_features(width_scale, obs_shape):
    encoder = ImpalaEncoder(obs_shape, width_scale)
    features = encoder(torch.randint(0, 256, (5, *obs_shape), dtype=torch.uint8))
    assert features.shape == (5, FEATURES) and features.dtype == torch.float32
    assert (features >= 0).all()


@pytest.mark.parametrize("width_scale", [1, 2])
@pytest.mark.parametrize("obs_shape", [(64, 64, 3), (9, 7, 1)])
def test_average_pooling_takes_each_channels_mean(width_scale, obs_shape):
    """Impoola, by hand: the mean over the image of each rectified channel, then linear and ReLU."""
    torch.manual_seed(0)
    encoder, flat = (ImpalaEncoder(obs_shape, width_scale, pooling) for pooling in ("average", "flatten"))
    assert encoder.linear.weight.shape == (FEATURES, 32 * width_scale)
    assert flat.linear.weight.shape == (FEATURES, 32 * width_scale * math.prod(-(-n // 8) for n in obs_shape[:2]))
    obs = torch.randint(0, 256, (5, *obs_shape), dtype=torch.uint8)
    with torch.no_grad():
        features, images = encoder(obs), encoder.blocks(obs.permute(0, 3, 1, 2) / 255).numpy()
        weight, bias = encoder.linear.weight.numpy(), encoder.linear.bias.numpy()
    assert features.shape == (5, FEATURES) and features.std() > 0
    for image, found in zip(images, features.numpy(), strict=True):
        means = [sum(max(pixel, 0.0) for pixel in channel.ravel()) / channel.size for channel in image]
        assert found == pytest.approx(((weight @ means) + bias).clip(0), abs=1e-5)


def test_average_pooling_does_not_see_where_a_channel_is_active():
    encoder = ImpalaEncoder(pooling="average")
    encoder.blocks = nn.Identity()
    encoder.linear = nn.Linear(3, FEATURES)
    obs = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(encoder(obs), encoder(obs.roll((5, -9), (1, 2))))


def test_encoder_scales_bytes_to_unit_range_and_reads_channels_last():
    encoder = ImpalaEncoder()
    seen = {}
    encoder.blocks.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    obs = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    encoder(obs)
    torch.testing.assert_close(seen["x"], obs.permute(0, 3, 1, 2) / 255)
    assert seen["x"].is_contiguous(memory_format=torch.channels_last)


def test_orthogonal_init_reaches_every_weight():
    model = nn.ModuleDict({"encoder": ImpalaEncoder(), "core": GRUCore(), "head": nn.Linear(FEATURES, 15)})
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    orthogonal_init(model, gain=1.5)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert (parameter == 0).all(), name
            continue
        gates = parameter.detach().chunk(3) if ".gru." in name else [parameter.detach().flatten(1)]
        gain = 1.0 if ".gru." in name else 1.5
        for matrix in gates:
            singular = torch.linalg.svdvals(matrix)
            torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=1e-4, msg=name)


def test_glorots_weights_have_his_variance():
    torch.manual_seed(0)
    encoder = ImpalaEncoder()
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, 7.0)
    glorot_init(encoder)
    for name, parameter in encoder.named_parameters():
        if "bias" in name:
            assert (parameter == 0).all(), name
        else:
            outputs, inputs, *kernel = parameter.shape
            variance = 2 / ((inputs + outputs) * math.prod(kernel))
            assert parameter.var().item() == pytest.approx(variance, rel=0.15), name
            assert parameter.abs().max().item() <= (3 * variance) ** 0.5, name  # uniform


def test_features_start_small():
    """With the textbook's gain sqrt(2) they are 100 times as large, and the first values far off."""
    encoder, obs = ImpalaEncoder(), torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    sizes = []
    for gain in (ENCODER_GAIN, 2**0.5):
        orthogonal_init(encoder, gain)
        sizes.append(encoder(obs).square().mean().sqrt().item())
    assert 0.01 < sizes[0] < 1 and sizes[1] > 3


@pytest.fixture
def core():
    torch.manual_seed(0)
    return GRUCore(8)


def test_gru_without_episode_starts_equals_torch(core):
    x, state = torch.randn(7, 3, 8), torch.randn(3, 8)
    outputs, last = core(x, state, torch.zeros(7, 3, dtype=torch.bool))
    expected, expected_last = core.gru(x, state.unsqueeze(0))
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(last, expected_last[0])


def test_gru_gradients_equal_torch(core):
    x, state = torch.randn(5, 2, 8), torch.randn(2, 8)
    core(x, state, torch.zeros(5, 2, dtype=torch.bool))[0].square().sum().backward()
    ours = [p.grad.clone() for p in core.parameters()]
    core.zero_grad()
    core.gru(x, state.unsqueeze(0))[0].square().sum().backward()
    torch.testing.assert_close(ours, [p.grad for p in core.parameters()])


def test_gru_zeroes_the_state_before_the_step_that_begins_an_episode(core):
    x, state = torch.randn(6, 2, 8), torch.randn(2, 8)
    start = torch.zeros(6, 2, dtype=torch.bool)
    start[0, 1] = start[3, 0] = True
    outputs, _ = core(x, state, start)
    first, _ = core.gru(x[:3, :1], state[None, :1])
    second, _ = core.gru(x[3:, :1], torch.zeros(1, 1, 8))
    other, _ = core.gru(x[:, 1:], torch.zeros(1, 1, 8))
    torch.testing.assert_close(outputs, torch.cat([torch.cat([first, second]), other], dim=1))


def test_gru_one_sequence_equals_single_steps(core):
    x, start = torch.randn(9, 4, 8), torch.rand(9, 4) < 0.3
    state = first = torch.randn(4, 8)
    steps = []
    for t in range(9):
        output, state = core(x[t : t + 1], state, start[t : t + 1])
        steps.append(output)
    outputs, last = core(x, first, start)
    torch.testing.assert_close(outputs, torch.cat(steps))
    torch.testing.assert_close(last, state)
