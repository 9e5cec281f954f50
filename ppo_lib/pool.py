"""Max-pooling in bf16 on CPUs, by a small C kernel that is compiled when it is first needed.

- torch's own pooling takes a fifth of a training update there: its forward pass writes 8 bytes of index an output, its
  backward pass clears the gradient and adds to it number by number. Here the index is a byte, and each gradient is
  gathered and written once.
- The result equals torch's: a window's first largest value gets its gradient. Sums of gradients are rounded once.
- Where there is no C compiler, and for everything but bf16 on a CPU, torch's pooling does the work.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LANES = 16  # channels that the kernel takes at a time
SOURCE = (
    f"#define LANES {LANES}"
    + r"""
#include <stdint.h>
#include <string.h>
#define VECTOR(type) __attribute__((vector_size(LANES * sizeof(type)))) type
typedef VECTOR(int16_t) shorts;
typedef VECTOR(uint16_t) halves;
typedef VECTOR(uint8_t) bytes;
typedef VECTOR(int32_t) ints;
typedef VECTOR(uint32_t) words;
typedef VECTOR(float) floats;

// bf16 bits <-> integers in the same order; -0 and 0 are equal
static inline shorts key(shorts x) { shorts s = x >> 15; return ((x & 0x7fff) ^ s) - s; }
static inline shorts value(shorts k) { shorts s = k >> 15; return ((k ^ s) - s) | (s & (int16_t)0x8000); }

// x [n, h, w, c] -> y [n, (h + 1) / 2, (w + 1) / 2, c], and which of the window's nine values it is
void forward(const int16_t *x, int16_t *y, uint8_t *place, long n, long h, long w, long c, int threads) {
    long rows = (h + 1) / 2, columns = (w + 1) / 2;
    #pragma omp parallel for num_threads(threads)
    for (long r = 0; r < n * rows; r++) {
        const int16_t *middle = x + (r / rows * h + 2 * (r % rows)) * w * c;
        long up = r % rows > 0, down = 2 * (r % rows) + 1 < h;
        for (long j = 0; j < columns; j++) {
            long left = j > 0, right = 2 * j + 1 < w;
            for (long first = 0; first < c; first += LANES) {
                shorts best = (shorts){} + INT16_MIN, at = (shorts){} + 4;
                for (long i = -up; i <= down; i++)
                    for (long k = -left; k <= right; k++) {
                        shorts found;
                        memcpy(&found, middle + (i * w + 2 * j + k) * c + first, sizeof found);
                        found = key(found);
                        shorts more = found > best;
                        best = (found & more) | (best & ~more);
                        at = ((int16_t)(3 * i + k + 4) & more) | (at & ~more);
                    }
                long out = (r * columns + j) * c + first;
                best = value(best);
                bytes chosen = __builtin_convertvector(at, bytes);
                memcpy(y + out, &best, sizeof best);
                memcpy(place + out, &chosen, sizeof chosen);
            }
        }
    }
}

// bf16 gradients of one window's outputs, where they chose value k; else 0
static inline floats share(halves gradient, bytes place, int k) {
    ints mine = __builtin_convertvector(place, ints) == k;
    return (floats)((__builtin_convertvector(gradient, words) << 16) & (words)mine);
}

static inline void store(uint16_t *to, floats sum) {
    words bits = (words)sum;
    halves rounded = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, halves);  // ties to even
    memcpy(to, &rounded, sizeof rounded);
}

// the gradient of y -> the gradient of x: a value gathers from the one, two or four windows that hold it
void backward(const uint16_t *dy, const uint8_t *place, uint16_t *dx, long n, long h, long w, long c,
              int threads) {
    long rows = (h + 1) / 2, columns = (w + 1) / 2;
    #pragma omp parallel for num_threads(threads)
    for (long r = 0; r < n * rows; r++) {
        long i = r % rows;
        uint16_t *top = dx + (r / rows * h + 2 * i) * w * c;
        for (long j = 0; j < columns; j++)
            for (long first = 0; first < c; first += LANES) {
                halves g[2][2] = {};  // of this window, the next one, and the two below
                bytes p[2][2] = {};
                for (int down = 0; down < 2; down++)
                    for (int right = 0; right < 2; right++)
                        if (i + down < rows && j + right < columns) {
                            long out = ((r + down) * columns + j + right) * c + first;
                            memcpy(&g[down][right], dy + out, sizeof(halves));
                            memcpy(&p[down][right], place + out, sizeof(bytes));
                        }
                #define FROM(down, right, k) share(g[down][right], p[down][right], k)
                uint16_t *to = top + 2 * j * c + first;
                store(to, FROM(0, 0, 4));
                if (2 * j + 1 < w) store(to + c, FROM(0, 0, 5) + FROM(0, 1, 3));
                if (2 * i + 1 < h) store(to + w * c, FROM(0, 0, 7) + FROM(1, 0, 1));
                if (2 * j + 1 < w && 2 * i + 1 < h)
                    store(to + w * c + c, FROM(0, 0, 8) + FROM(0, 1, 6) + FROM(1, 0, 2) + FROM(1, 1, 0));
            }
    }
}
"""
)


class MaxPool(nn.Module):
    """The maximum of each 3x3 window, two pixels apart. [B, C, H, W] -> [B, C, (H + 1) // 2, (W + 1) // 2]."""

    def forward(self, x: Tensor) -> Tensor:
        fits = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[1] % LANES == 0
        if fits and kernel() is not None:
            return _MaxPool.apply(x)
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


@lru_cache(maxsize=1)
def kernel() -> ctypes.CDLL | None:
    """The compiled functions, or None where they can't be had. Compiling takes some tenths of a second, once."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target, library = (str(Path(folder, name)) for name in ("pool.c", "pool.o", "pool.so"))
            Path(source).write_text(SOURCE)
            _cc("-O3", "-march=native", "-fopenmp", "-fPIC", "-c", "-o", target, source)
            # linked without -fopenmp: torch has loaded its own OpenMP, whose threads are shared
            _cc("-shared", "-o", library, target)
            return ctypes.CDLL(library)
    except (OSError, subprocess.SubprocessError):
        return None


def _cc(*arguments: str) -> None:
    subprocess.run(["cc", *arguments], check=True, capture_output=True, timeout=60)


class _MaxPool(torch.autograd.Function):
    """The kernel's two functions."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        n, c, h, w = ctx.shape = x.shape
        y = _empty((n, c, (h + 1) // 2, (w + 1) // 2))
        place = torch.empty_like(y, dtype=torch.uint8)
        _call("forward", x.contiguous(memory_format=torch.channels_last), y, place, x.shape)
        ctx.save_for_backward(place)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (place,), dx = ctx.saved_tensors, _empty(ctx.shape)
        _call("backward", gradient.contiguous(memory_format=torch.channels_last), place, dx, ctx.shape)
        return dx


def _empty(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)


def _call(name: str, a: Tensor, b: Tensor, c: Tensor, shape: tuple[int, ...]) -> None:
    n, channels, h, w = shape
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, c))
    getattr(kernel(), name)(*pointers, *map(ctypes.c_long, (n, h, w, channels)), torch.get_num_threads())
