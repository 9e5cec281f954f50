"""Exercises of notebook 02: wrong answers, written as a student would, and the sentence that each gets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ppo_lib.course.exercises import examine, find
from ppo_lib.course.exercises.model import gru_step, shape_and_field, start_flags
from ppo_lib.model import GRUCore, ImpalaEncoder


def relu_in_place(x, block):
    inner = block.conv1(F.relu_(x))
    return x + block.conv2(F.relu(inner))


def relu_on_the_skip(x, block):
    x = F.relu(x)
    return x + block.conv2(F.relu(block.conv1(x)))


def no_skip(x, block):
    y = block.conv1(F.relu(x))
    return block.conv2(F.relu(y))


def no_first_relu(x, block):
    y = F.relu(block.conv1(x))
    return x + block.conv2(y)


def no_second_relu(x, block):
    y = block.conv1(torch.clamp(x, min=0))
    return x + block.conv2(y)


def no_relu(x, block):
    return x + block.conv2(block.conv1(x))


def relu_at_the_end(x, block):
    y = block.conv2(F.relu(block.conv1(F.relu(x))))
    return torch.relu(x + y)


def relu_after_each(x, block):
    y = F.relu(block.conv1(x))
    y = F.relu(block.conv2(y))
    return x + y


def one_convolution_twice(x, block):
    y = x
    for _ in range(2):
        y = block.conv1(F.relu(y))
    return x + y


def padding_once(layers, size):
    field, distance = 1, 1
    for kernel, stride, padding in layers:
        size = (size + padding - kernel) // stride + 1
        field = field + (kernel - 1) * distance
        distance = distance * stride
    return size, field


def padding_forgotten(layers, size):
    field, distance = 1, 1
    for kernel, stride, _ in layers:
        size = (size - kernel) // stride + 1
        field += (kernel - 1) * distance
        distance *= stride
    return size, field


def rounded_up(layers, size):
    field, distance = 1, 1
    for kernel, stride, padding in layers:
        size = math.ceil((size + 2 * padding - kernel) / stride) + 1
        field += (kernel - 1) * distance
        distance *= stride
    return size, field


def whole_kernel(layers, size):
    field, distance = 1, 1
    for kernel, stride, padding in layers:
        size = (size + 2 * padding - kernel) // stride + 1
        field += kernel * distance
        distance *= stride
    return size, field


def distance_first(layers, size):
    field, distance = 1, 1
    for kernel, stride, padding in layers:
        size = (size + 2 * padding - kernel) // stride + 1
        distance *= stride
        field += (kernel - 1) * distance
    return size, field


def distance_forgotten(layers, size):
    field = 1
    for kernel, stride, padding in layers:
        size = (size + 2 * padding - kernel) // stride + 1
        field += kernel - 1
    return size, field


def strides_added(layers, size):
    field, distance = 1, 1
    for kernel, stride, padding in layers:
        size = (size + 2 * padding - kernel) // stride + 1
        field += (kernel - 1) * distance
        distance += stride
    return size, field


def last_stride(layers, size):
    field, distance = 1, 1
    for kernel, stride, padding in layers:
        size = (size + 2 * padding - kernel) // stride + 1
        field += (kernel - 1) * distance
        distance = stride
    return size, field


def parts(x, h, gru):
    inputs, memories = F.linear(x, gru.weight_ih_l0, gru.bias_ih_l0), F.linear(h, gru.weight_hh_l0, gru.bias_hh_l0)
    return (*inputs.chunk(3, -1), *memories.chunk(3, -1))


def gates_swapped(x, h, gru):
    x_z, x_r, x_n, h_z, h_r, h_n = parts(x, h, gru)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(x_n + r * h_n) + z * h


def mixed_the_other_way(x, h, gru):
    x_r, x_z, x_n, h_r, h_z, h_n = parts(x, h, gru)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return z * torch.tanh(x_n + r * h_n) + (1 - z) * h


def only_the_candidate(x, h, gru):
    x_r, _, x_n, h_r, _, h_n = parts(x, h, gru)
    return torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)


def reset_before_the_matrix(x, h, gru):
    x_r, x_z, x_n, h_r, h_z, _ = parts(x, h, gru)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    size = h.shape[-1]
    h_n = (r * h) @ gru.weight_hh_l0[2 * size :].T + gru.bias_hh_l0[2 * size :]
    return (1 - z) * torch.tanh(x_n + h_n) + z * h


def reset_of_the_sum(x, h, gru):
    x_r, x_z, x_n, h_r, h_z, h_n = parts(x, h, gru)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(r * (x_n + h_n)) + z * h


def reset_forgotten(x, h, gru):
    _, x_z, x_n, _, h_z, h_n = parts(x, h, gru)
    z = torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(x_n + h_n) + z * h


def tanh_forgotten(x, h, gru):
    x_r, x_z, x_n, h_r, h_z, h_n = parts(x, h, gru)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * (x_n + r * h_n) + z * h


def sigmoid_for_tanh(x, h, gru):
    x_r, x_z, x_n, h_r, h_z, h_n = parts(x, h, gru)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.sigmoid(x_n + r * h_n) + z * h


def own_end(done, done_before):
    return done.clone()


def next_end(done, done_before):
    starts = torch.zeros_like(done)
    starts[:-1] = done[1:]
    starts[-1] = done_before
    return starts


def no_first_start(done, done_before):
    starts = torch.zeros_like(done)
    starts[1:] = done[:-1]
    return starts


def always_a_first_start(done, done_before):
    starts = torch.ones_like(done)
    starts[1:] = done[:-1]
    return starts


def rolled(done, done_before):
    return done.roll(1, dims=0)


def one_row_more(done, done_before):
    return torch.vstack([done_before, done])


def the_stack(gru):
    for name, parameter in gru.named_parameters():
        if name.startswith("weight"):
            nn.init.orthogonal_(parameter)
        else:
            nn.init.constant_(parameter, 0)


def along_the_columns(gru):
    with torch.no_grad():
        for name, parameter in gru.named_parameters():
            if "bias" in name:
                parameter.zero_()
            else:
                for gate in parameter.chunk(3, dim=1):
                    nn.init.orthogonal_(gate)


def memory_only(gru):
    nn.init.zeros_(gru.bias_ih_l0)
    nn.init.zeros_(gru.bias_hh_l0)
    for gate in gru.weight_hh_l0.data.chunk(3):
        nn.init.orthogonal_(gate)


def input_only(gru):
    nn.init.zeros_(gru.bias_ih_l0)
    nn.init.zeros_(gru.bias_hh_l0)
    for gate in gru.weight_ih_l0.data.chunk(3):
        nn.init.orthogonal_(gate)


def biases_forgotten(gru):
    for weight in (gru.weight_hh_l0, gru.weight_ih_l0):
        for gate in weight.data.chunk(3):
            nn.init.orthogonal_(gate)


def first_gate_only(gru):
    size = gru.hidden_size
    for name, parameter in gru.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
        else:
            nn.init.orthogonal_(parameter.data[:size])


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("residual", relu_in_place, "the skip carries relu(x) instead of x"),
        ("residual", relu_on_the_skip, "the skip carries relu(x) instead of x"),
        ("residual", no_skip, "the skip is missing"),
        ("residual", no_first_relu, "before the first convolution is missing"),
        ("residual", no_second_relu, "between the two convolutions is missing"),
        ("residual", no_relu, "both ReLUs are missing"),
        ("residual", relu_at_the_end, "a ReLU after the sum"),
        ("residual", relu_after_each, "stands after its convolution"),
        ("residual", one_convolution_twice, "the same convolution is used twice"),
        ("shape_and_field", padding_once, "added on both sides"),
        ("shape_and_field", padding_forgotten, "the padding is missing"),
        ("shape_and_field", rounded_up, "the size is rounded up"),
        ("shape_and_field", whole_kernel, "grows by (kernel - 1) * distance"),
        ("shape_and_field", distance_first, "before the field grows"),
        ("shape_and_field", distance_forgotten, "the distance stays 1"),
        ("shape_and_field", strides_added, "the stride is added"),
        ("shape_and_field", last_stride, "the last stride alone"),
        ("gru_step", gates_swapped, "r and z are swapped"),
        ("gru_step", mixed_the_other_way, "z and 1 - z are swapped"),
        ("gru_step", only_the_candidate, "the memory is the candidate alone"),
        ("gru_step", reset_before_the_matrix, "before its matrix"),
        ("gru_step", reset_of_the_sum, "r multiplies the input as well"),
        ("gru_step", reset_forgotten, "r isn't used"),
        ("gru_step", tanh_forgotten, "tanh is missing"),
        ("gru_step", sigmoid_for_tanh, "the candidate has a sigmoid"),
        ("start_flags", own_end, "your flags are done[t]"),
        ("start_flags", next_end, "in the wrong direction"),
        ("start_flags", no_first_start, "step 0 is never a start"),
        ("start_flags", always_a_first_start, "step 0 is always a start"),
        ("start_flags", rolled, "has come round to step 0"),
        ("start_flags", one_row_more, "one row too many"),
        ("orthogonal_gates", the_stack, "none of its three gates"),
        ("orthogonal_gates", along_the_columns, "split along the columns"),
        ("orthogonal_gates", memory_only, "weight_ih_l0) keep torch's default"),
        ("orthogonal_gates", input_only, "weight_hh_l0) keep torch's default"),
        ("orthogonal_gates", biases_forgotten, "the biases keep torch's default"),
        ("orthogonal_gates", first_gate_only, "only the first gate is orthogonal"),
    ],
)
def test_a_students_mistake_is_named(name, answer, words):
    status, sentence = examine(find(name), answer)
    assert status == "wrong" and words in sentence


def test_the_gru_step_is_ppo_libs():
    """torch's own GRU and GRUCore agree with it."""
    torch.manual_seed(0)
    core, x, h = GRUCore(8), torch.randn(1, 3, 8), torch.randn(3, 8)
    _, state = core(x, h, torch.zeros(1, 3, dtype=torch.bool))
    torch.testing.assert_close(gru_step(x[0], h, core.gru), state)
    torch.testing.assert_close(core.gru(x, h[None])[1][0], state)


def test_the_shape_is_the_encoders():
    block = [(3, 1, 1), (3, 2, 1), *4 * [(3, 1, 1)]]
    size, field = shape_and_field(3 * block, 64)
    assert ImpalaEncoder().linear.in_features == 32 * size**2 and field == 141


def test_the_flags_are_those_of_the_collector():
    """A GRU fed with them forgets exactly where an episode ended."""
    done = torch.tensor([[False], [True], [False]])
    assert start_flags(done, torch.tensor([True])).flatten().tolist() == [True, False, True]
