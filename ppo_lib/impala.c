// One IMPALA block (3x3 conv, 3x3 max-pool of stride 2, two residual blocks) in bf16, or its pooling alone, forward and
// backward, for CPUs with AVX512-BF16. kernels.py compiles and calls it.
//
// - One image after the other goes through the whole block, so that all between stays in the core's own cache.
// - An image is [height][width][channels], channels a multiple of 16; a padded one has a border of zeros.
// - `dot` (the instruction vdpbf16ps) multiplies 16 pairs of bf16 by one pair and adds the products to 16 floats, the
//   lanes: output channels. A pair is two input channels of a pixel, or, in a gradient of weights, two pixels of a row.
// - Sums are floats, rounded to bf16 where an image is stored (to nearest, ties to even).

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define TILE 16  // pixels of a row that are computed together, at most
#define VECTOR(type) __attribute__((vector_size(LANES * sizeof(type)))) type
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16") for

typedef uint16_t bf16;
typedef VECTOR(int16_t) shorts;
typedef VECTOR(uint16_t) halves;
typedef VECTOR(uint8_t) bytes;
typedef VECTOR(int32_t) ints;
typedef VECTOR(uint32_t) pairs;
typedef VECTOR(float) floats;

typedef struct {
    bf16 *data;  // the first pixel
    long height, width, channels;
    long row;  // values from one row to the next
} image;

// --- vectors ---------------------------------------------------------------------------------------------------------

INLINE floats dot(floats sum, const void *pair, pairs weights) {
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*(const uint32_t *)pair));
    return sum;
}

INLINE floats only(ints condition, floats x) { return (floats)((ints)x & condition); }

INLINE floats load(const bf16 *from) {
    halves x;
    memcpy(&x, from, sizeof x);
    return (floats)(__builtin_convertvector(x, pairs) << 16);
}

INLINE void store(bf16 *to, floats x) {
    pairs bits = (pairs)x;
    halves y = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, halves);
    memcpy(to, &y, sizeof y);
}

static bf16 rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// --- memory ----------------------------------------------------------------------------------------------------------

static void *zeros(long size) {
    size = (size + 63) / 64 * 64;
    return memset(aligned_alloc(64, size), 0, size);
}

static image view(const void *data, long height, long width, long channels) {
    return (image){(bf16 *)data, height, width, channels, width * channels};
}

static image new_padded(long height, long width, long channels) {
    long row = ((width + TILE - 1) / TILE * TILE + 2) * channels;  // whole tiles may be read
    bf16 *data = zeros(((height + 2) * row + 2 * channels) * sizeof(bf16));
    return (image){data + row + channels, height, width, channels, row};
}

static void delete_padded(image x) { free(x.data - x.row - x.channels); }

static void copy(image from, image to) {
    for (long i = 0; i < from.height; i++) {
        const bf16 *x = from.data + i * from.row;
        bf16 *y = to.data + i * to.row;
        if (from.channels == 3)  // red, green and blue, to four channels
            for (long j = 0; j < from.width; j++, x += 3, y += 4) y[0] = x[0], y[1] = x[1], y[2] = x[2];
        else
            memcpy(y, x, from.width * from.channels * sizeof(bf16));
    }
}

static void copy_positive(image from, image to) {
    for (long i = 0; i < from.height; i++)
        for (long k = 0; k < from.width * from.channels; k++) {
            bf16 x = from.data[i * from.row + k];
            to.data[i * to.row + k] = x >= 0x8000 && x <= 0xff80 ? 0 : x;  // 0 for -0 to -infinity; NaN stays
        }
}

// --- convolution -----------------------------------------------------------------------------------------------------

// The weights of a convolution [out][3][3][in], as pairs of input channels [out / 16][3][3][in / 2][16]. transposed:
// the weights that take the gradient of its output to the gradient of its input.
static pairs *pack(const float *weights, long in, long out, int transposed) {
    long from = transposed ? out : in, to = transposed ? in : out, half = (from + 3) / 4 * 2;
    bf16(*packed)[LANES][2] = zeros(to * 9 * half * 4);
    for (long o = 0; o < to; o++)
        for (long tap = 0; tap < 9; tap++)
            for (long k = 0; k < from; k++)
                packed[(o / LANES * 9 + tap) * half + k / 2][o % LANES][k % 2] =
                    rounded(transposed ? weights[(k * 9 + 8 - tap) * in + o] : weights[(o * 9 + tap) * in + k]);
    return (pairs *)packed;
}

static floats *pack_bias(const float *bias, long out) {
    bf16(*packed)[2] = zeros(out * sizeof(float));  // the upper half of a float is its bf16
    for (long o = 0; o < out; o++) packed[o][1] = rounded(bias[o]);
    return (floats *)packed;
}

// out = conv(in) + bias, where the mask is positive, else 0; then + add; then its positive part, if relu. in is padded;
// bias, mask and add may be null. Constants for the compiler: in's channels, pixels of a tile, blocks of 16 outputs.
INLINE void convolve_(image in, const pairs *weights, const floats *bias, const image *mask, const image *add, int relu,
                      image out, const int channels, const int pixels, const int blocks) {
    const int half = channels / 2;
    for (long first = 0; first < out.channels; first += blocks * LANES, weights += blocks * 9 * half)
        for (long i = 0; i < out.height; i++)
            for (long j = 0; j < out.width; j += pixels) {
                floats sum[2][TILE];
                UNROLLED(int b = 0; b < blocks; b++)
                    UNROLLED(int q = 0; q < pixels; q++) sum[b][q] = bias ? bias[first / LANES + b] : (floats){};
                for (int tap = 0; tap < 9; tap++) {
                    const bf16 *at = in.data + (i + tap / 3 - 1) * in.row + (j + tap % 3 - 1) * channels;
                    const pairs *w = weights + tap * half;
                    for (int k = 0; k < half; k++, w++, at += 2)
                        UNROLLED(int q = 0; q < pixels; q++)
                            UNROLLED(int b = 0; b < blocks; b++)
                                sum[b][q] = dot(sum[b][q], at + q * channels, w[b * 9 * half]);
                }
                UNROLLED(int b = 0; b < blocks; b++)
                    UNROLLED(int q = 0; q < pixels; q++) {
                        if (j + q >= out.width) continue;
                        long place = (j + q) * out.channels + first + b * LANES;
                        floats x = sum[b][q];
                        if (mask) x = only(load(mask->data + i * mask->row + place) > 0, x);
                        if (add) x += load(add->data + i * add->row + place);
                        if (relu) x = only(~(x < 0), x);
                        store(out.data + i * out.row + place, x);
                    }
            }
}

static void convolve(image in, const pairs *weights, const floats *bias, const image *mask, const image *add, int relu,
                     image out) {
    #define CASE(n) \
        if (in.channels == n && out.channels % 32 == 0) \
            convolve_(in, weights, bias, mask, add, relu, out, n, 8, 2); \
        else if (in.channels == n) \
            convolve_(in, weights, bias, mask, add, relu, out, n, 16, 1);
    CASE(4) CASE(16) CASE(32)
    #undef CASE
}

// What a convolution's weights and bias receive, in floats: [out / 16][3][3][in][16] and [out].
typedef struct {
    floats *weights, *bias;
} gradients;

// Adds what one image gives. in and dy (the output's gradient) are padded; x and g are room for them as pairs.
INLINE void add_gradients_(image in, image dy, gradients to, uint32_t *x, pairs *g, const int channels,
                           const int block) {
    const long row = (in.width + 2) * channels, columns = (in.width + 1) / 2;
    for (long i = 0; i < in.height + 2; i++) {  // each value beside its right neighbour
        const bf16 *from = in.data + (i - 1) * in.row - channels;
        for (long k = 0; k < row; k++) x[i * row + k] = from[k] | (uint32_t)from[k + channels] << 16;
    }
    for (long first = 0; first < dy.channels; first += LANES) {
        floats total = {};
        for (long i = 0; i < in.height; i++)
            for (long j = 0; j < columns; j++) {
                const bf16 *at = dy.data + i * dy.row + 2 * j * dy.channels + first;
                floats left = load(at), right = load(at + dy.channels);
                g[i * columns + j] = (pairs)left >> 16 | (pairs)right;
                total += left + right;
            }
        to.bias[first / LANES] += total;
        for (int a = 0; a < 3; a++)
            for (int part = 0; part < channels; part += block) {
                floats sum[3][8] = {};
                for (long i = 0; i < in.height; i++) {
                    const uint32_t *at = x + (i + a) * row + part;
                    for (long j = 0; j < columns; j++, at += 2 * channels) {
                        pairs gradient = g[i * columns + j];
                        UNROLLED(int b = 0; b < 3; b++)
                            UNROLLED(int k = 0; k < block; k++)
                                sum[b][k] = dot(sum[b][k], at + b * channels + k, gradient);
                    }
                }
                floats *weights = to.weights + (first / LANES * 9 + 3 * a) * channels + part;
                UNROLLED(int b = 0; b < 3; b++)
                    UNROLLED(int k = 0; k < block; k++) weights[b * channels + k] += sum[b][k];
            }
    }
}

static void add_gradients(image in, image dy, gradients to, uint32_t *x, pairs *g) {
    if (in.channels == 4) add_gradients_(in, dy, to, x, g, 4, 4);
    if (in.channels == 16) add_gradients_(in, dy, to, x, g, 16, 8);
    if (in.channels == 32) add_gradients_(in, dy, to, x, g, 32, 8);
}

// --- max-pooling -----------------------------------------------------------------------------------------------------

// bf16 bits as integers of the same order, in which -0 and 0 are equal, and back
INLINE shorts key(shorts x) { shorts sign = x >> 15; return ((x & 0x7fff) ^ sign) - sign; }
INLINE shorts value(shorts k) { shorts sign = k >> 15; return ((k ^ sign) - sign) | (sign & (int16_t)0x8000); }

// place: which of the window's nine values is its first largest (as in torch), laid out like y; may be null
static void pool(image x, image y, uint8_t *place) {
    for (long r = 0; r < y.height; r++) {
        const bf16 *middle = x.data + 2 * r * x.row;
        long up = r > 0, down = 2 * r + 1 < x.height;
        for (long j = 0; j < y.width; j++) {
            long left = j > 0, right = 2 * j + 1 < x.width;
            for (long first = 0; first < x.channels; first += LANES) {
                shorts best = (shorts){} + INT16_MIN, at = (shorts){} + 4;
                for (long i = -up; i <= down; i++)
                    for (long k = -left; k <= right; k++) {
                        shorts found;
                        memcpy(&found, middle + i * x.row + (2 * j + k) * x.channels + first, sizeof found);
                        found = key(found);
                        shorts more = found > best;
                        best = (found & more) | (best & ~more);
                        at = ((int16_t)(3 * i + k + 4) & more) | (at & ~more);
                    }
                best = value(best);
                bytes chosen = __builtin_convertvector(at, bytes);
                memcpy(y.data + r * y.row + j * y.channels + first, &best, sizeof best);
                if (place) memcpy(place + (r * y.width + j) * y.channels + first, &chosen, sizeof chosen);
            }
        }
    }
}

// dx: a value gathers from the one, two or four windows that hold it
static void pool_gradient(image dy, const uint8_t *place, image dx) {
    for (long i = 0; i < dy.height; i++)
        for (long j = 0; j < dy.width; j++)
            for (long first = 0; first < dy.channels; first += LANES) {
                floats g[2][2] = {};  // the gradients of this window, of the next one, and of the two below
                ints p[2][2] = {};
                for (int down = 0; down < 2; down++)
                    for (int right = 0; right < 2; right++)
                        if (i + down < dy.height && j + right < dy.width) {
                            bytes chosen;
                            memcpy(&chosen, place + ((i + down) * dy.width + j + right) * dy.channels + first, LANES);
                            p[down][right] = __builtin_convertvector(chosen, ints);
                            g[down][right] = load(dy.data + (i + down) * dy.row + (j + right) * dy.channels + first);
                        }
                #define FROM(down, right, k) only(p[down][right] == k, g[down][right])
                bf16 *to = dx.data + 2 * i * dx.row + 2 * j * dx.channels + first;
                int right = 2 * j + 1 < dx.width, below = 2 * i + 1 < dx.height;
                store(to, FROM(0, 0, 4));
                if (right) store(to + dx.channels, FROM(0, 0, 5) + FROM(0, 1, 3));
                if (below) store(to + dx.row, FROM(0, 0, 7) + FROM(1, 0, 1));
                if (right && below)
                    store(to + dx.row + dx.channels, FROM(0, 0, 8) + FROM(0, 1, 6) + FROM(1, 0, 2) + FROM(1, 1, 0));
            }
}

// --- the block -------------------------------------------------------------------------------------------------------

#define CONVS 5  // the first one, and two in each residual block

// What the backward pass needs of the forward pass, each [n][H][W][c]: where the pool found its values, its output, the
// hidden layer of residual block 1, its output, the hidden layer of block 2.
typedef struct {
    uint8_t *place;
    bf16 *x[2], *hidden[2];
} kept;

// x [n][h][w][in] -> y [n][H][W][c], where H and W are half of h and w, rounded up. weights [c][3][3][in] and
// biases [c]: one of each for every conv. keep may be null.
void block_forward(const bf16 *x, const float **weights, const float **biases, bf16 *y, const kept *keep, long n,
                   long h, long w, long in, long c, int threads) {
    const long H = (h + 1) / 2, W = (w + 1) / 2, size = H * W * c;
    pairs *packed[CONVS];
    floats *bias[CONVS];
    for (int k = 0; k < CONVS; k++) packed[k] = pack(weights[k], k ? c : in, c, 0), bias[k] = pack_bias(biases[k], c);
    #pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        image input = new_padded(h, w, in == 3 ? 4 : in), wide = new_padded(h, w, c), active = new_padded(H, W, c),
              hidden = new_padded(H, W, c), local[2] = {new_padded(H, W, c), new_padded(H, W, c)};
        for (long i = n * t / threads; i < n * (t + 1) / threads; i++) {
            image x_[3] = {local[0], local[1], view(y + i * size, H, W, c)};
            for (int r = 0; keep && r < 2; r++) x_[r] = view(keep->x[r] + i * size, H, W, c);
            copy(view(x + i * h * w * in, h, w, in), input);
            convolve(input, packed[0], bias[0], NULL, NULL, 0, wide);
            pool(wide, x_[0], keep ? keep->place + i * size : NULL);
            for (int r = 0; r < 2; r++) {
                copy_positive(x_[r], active);
                convolve(active, packed[1 + 2 * r], bias[1 + 2 * r], NULL, NULL, 1, hidden);
                if (keep) copy(hidden, view(keep->hidden[r] + i * size, H, W, c));
                convolve(hidden, packed[2 + 2 * r], bias[2 + 2 * r], NULL, &x_[r], 0, x_[r + 1]);
            }
        }
        delete_padded(input), delete_padded(wide), delete_padded(active), delete_padded(hidden);
        delete_padded(local[0]), delete_padded(local[1]);
    }
    for (int k = 0; k < CONVS; k++) free(packed[k]), free(bias[k]);
}

// dy [n][H][W][c] -> dx [n][h][w][in] (unless null) and, for every conv and thread, its `gradients`, added to
// sums[conv][thread]: weights [c / 16][3][3][in, or 4 for 3][16], then bias [c].
void block_backward(const bf16 *x, const float **weights, const bf16 *dy, const kept *keep, bf16 *dx, float **sums,
                    long n, long h, long w, long in, long c, int threads) {
    const long H = (h + 1) / 2, W = (w + 1) / 2, size = H * W * c, inputs = in == 3 ? 4 : in;
    pairs *packed[CONVS] = {0};
    for (int k = dx ? 0 : 1; k < CONVS; k++) packed[k] = pack(weights[k], k ? c : in, c, 1);
    #pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        image input = new_padded(h, w, inputs), wide = new_padded(h, w, c), active = new_padded(H, W, c),
              hidden = new_padded(H, W, c), d_hidden = new_padded(H, W, c),
              d[3] = {new_padded(H, W, c), new_padded(H, W, c), new_padded(H, W, c)};
        uint32_t *room = zeros((h + 2) * (w + 2) * (inputs > c ? inputs : c) * sizeof(uint32_t));
        pairs *more_room = zeros(h * ((w + 1) / 2) * sizeof(pairs));
        gradients to[CONVS];
        for (int k = 0; k < CONVS; k++) {
            long values = 9 * (k ? c : inputs) * c;
            to[k].weights = (floats *)(sums[k] + t * (values + c)), to[k].bias = to[k].weights + values / LANES;
        }
        for (long i = n * t / threads; i < n * (t + 1) / threads; i++) {
            copy(view(dy + i * size, H, W, c), d[2]);
            for (int r = 1; r >= 0; r--) {
                image x_ = view(keep->x[r] + i * size, H, W, c), hidden_ = view(keep->hidden[r] + i * size, H, W, c);
                copy(hidden_, hidden);
                add_gradients(hidden, d[r + 1], to[2 + 2 * r], room, more_room);
                convolve(d[r + 1], packed[2 + 2 * r], NULL, &hidden_, NULL, 0, d_hidden);
                copy_positive(x_, active);
                add_gradients(active, d_hidden, to[1 + 2 * r], room, more_room);
                convolve(d_hidden, packed[1 + 2 * r], NULL, &x_, &d[r + 1], 0, d[r]);
            }
            pool_gradient(d[0], keep->place + i * size, wide);
            copy(view(x + i * h * w * in, h, w, in), input);
            add_gradients(input, wide, to[0], room, more_room);
            if (dx) convolve(wide, packed[0], NULL, NULL, NULL, 0, view(dx + i * h * w * in, h, w, in));
        }
        delete_padded(input), delete_padded(wide), delete_padded(active), delete_padded(hidden);
        delete_padded(d_hidden), delete_padded(d[0]), delete_padded(d[1]), delete_padded(d[2]);
        free(room), free(more_room);
    }
    for (int k = 0; k < CONVS; k++) free(packed[k]);
}

// --- the pooling alone -----------------------------------------------------------------------------------------------

// x [n][h][w][c] -> y, place [n][H][W][c]
void pool_forward(const bf16 *x, bf16 *y, uint8_t *place, long n, long h, long w, long c, int threads) {
    const long H = (h + 1) / 2, W = (w + 1) / 2;
    #pragma omp parallel for num_threads(threads)
    for (long i = 0; i < n; i++)
        pool(view(x + i * h * w * c, h, w, c), view(y + i * H * W * c, H, W, c), place + i * H * W * c);
}

// dy, place [n][H][W][c] -> dx [n][h][w][c]
void pool_backward(const bf16 *dy, const uint8_t *place, bf16 *dx, long n, long h, long w, long c, int threads) {
    const long H = (h + 1) / 2, W = (w + 1) / 2;
    #pragma omp parallel for num_threads(threads)
    for (long i = 0; i < n; i++)
        pool_gradient(view(dy + i * H * W * c, H, W, c), place + i * H * W * c, view(dx + i * h * w * c, h, w, c));
}
