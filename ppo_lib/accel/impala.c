// One IMPALA block (3x3 conv, 3x3 max-pool of stride 2, two residual blocks), or its pooling alone, forward and
// backward. kernels.py compiles it twice, for float32 and (-D BF16, with AVX512-BF16) for bf16, and calls it.
//
// - One image after the other goes through the whole block, so that all between stays in the core's own cache.
// - An image is [height][width][channels], channels a multiple of 16; a padded one has a border of zeros.
// - A vector's lanes are output channels. `dot` multiplies their weights by a group of numbers that is the same for all
//   lanes: one float32, or two bf16 (by the instruction vdpbf16ps). Such a pair is two input channels of a pixel or, in
//   a gradient of weights, two pixels of a row.
// - Sums are floats. In bf16 they are rounded (to nearest, ties to even) where an image is stored.
// - A thread takes the next images when it is free, so that none waits for one that has to share its core. Gradients are
//   summed within pieces of the batch, then over these: in the same order, whatever the number of threads.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILE 16  // pixels of a row that are computed together, at most
#ifdef __AVX512F__  // 32 registers of 16 floats
#define LANES 16
#define NARROW 16, 1  // pixels of a tile, and blocks of LANES output channels
#define WIDE 8, 2  // the same where two blocks fit
#define PART 8, RGB  // input channels whose weights' gradients are summed together; and of RGB images
#else  // 16 registers of 8 floats
#define LANES 8
#define NARROW 8, 1
#define WIDE 4, 2
#define PART 4, RGB
#endif

#define VECTOR(type) __attribute__((vector_size(LANES * sizeof(type)))) type
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16") for

typedef VECTOR(uint16_t) halves;
typedef VECTOR(uint8_t) bytes;
typedef VECTOR(int32_t) ints;
typedef VECTOR(uint32_t) words;
typedef VECTOR(float) floats;

// --- numbers ---------------------------------------------------------------------------------------------------------

INLINE floats only(ints condition, floats x) { return (floats)((ints)x & condition); }

#ifdef BF16

#define GROUP 2
#define RGB 4  // channels of an image of three, padded to groups
typedef uint16_t number;
typedef int16_t key;
#define LOWEST INT16_MIN
typedef uint32_t __attribute__((may_alias, aligned(2))) group;
typedef words groups;

INLINE floats dot(floats sum, const group *x, groups weights) {
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*x));
    return sum;
}

INLINE floats load(const number *from) {
    halves x;
    memcpy(&x, from, sizeof x);
    return (floats)(__builtin_convertvector(x, words) << 16);
}

INLINE void store(number *to, floats x) {
    words bits = (words)x;
    halves y = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, halves);
    memcpy(to, &y, sizeof y);
}

INLINE group join(number left, number right) { return left | (uint32_t)right << 16; }
INLINE groups join_lanes(floats left, floats right) { return (words)left >> 16 | (words)right; }  // both are bf16
INLINE number positive(number x) { return x >= 0x8000 && x <= 0xff80 ? 0 : x; }  // 0 for -0 to -infinity; NaN stays

static number rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static float as_float(number x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

#else

#define GROUP 1
#define RGB 3
typedef float number;
typedef int32_t key;
#define LOWEST INT32_MIN
typedef float group;
typedef floats groups;

INLINE floats dot(floats sum, const group *x, groups weights) { return sum + *x * weights; }

INLINE floats load(const number *from) {
    floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(number *to, floats x) { memcpy(to, &x, sizeof x); }
INLINE group join(number left, number right) { return (void)right, left; }
INLINE groups join_lanes(floats left, floats right) { return (void)right, left; }
INLINE number positive(number x) { return x < 0 ? 0 : x; }
static number rounded(float x) { return x; }
static float as_float(number x) { return x; }

#endif

// --- images ----------------------------------------------------------------------------------------------------------

typedef struct {
    number *data;  // the first pixel
    long height, width, channels;
    long row;  // numbers from one row to the next
} image;

static void *room(long size) { return aligned_alloc(64, (size + 63) / 64 * 64); }
static void *zeros(long size) { return memset(room(size), 0, size); }

static image view(const void *data, long height, long width, long channels) {
    return (image){(number *)data, height, width, channels, width * channels};
}

static image new_padded(long height, long width, long channels) {
    long row = ((width + TILE - 1) / TILE * TILE + 2) * channels;  // whole tiles may be read
    number *data = zeros(((height + 2) * row + 2 * channels) * sizeof(number));
    return (image){data + row + channels, height, width, channels, row};
}

static void delete_padded(image x) { free(x.data - x.row - x.channels); }

static void copy(image from, image to) {
    for (long i = 0; i < from.height; i++) {
        const number *x = from.data + i * from.row;
        number *y = to.data + i * to.row;
        if (from.channels == to.channels)
            memcpy(y, x, from.width * from.channels * sizeof(number));
        else  // three to RGB
            for (long j = 0; j < from.width; j++, x += 3, y += RGB) y[0] = x[0], y[1] = x[1], y[2] = x[2];
    }
}

static void copy_positive(image from, image to) {
    for (long i = 0; i < from.height; i++)
        for (long k = 0; k < from.width * from.channels; k++)
            to.data[i * to.row + k] = positive(from.data[i * from.row + k]);
}

// --- convolution -----------------------------------------------------------------------------------------------------

// The weights of a convolution [out][3][3][in], as groups of input channels [out / LANES][3][3][in / GROUP][LANES].
// transposed: the weights that take the gradient of its output to the gradient of its input.
static groups *pack(const float *weights, long in, long out, int transposed) {
    long from = transposed ? out : in, to = transposed ? in : out, per = (from + GROUP - 1) / GROUP;
    number(*packed)[LANES][GROUP] = zeros(to * 9 * per * GROUP * sizeof(number));
    for (long o = 0; o < to; o++)
        for (long tap = 0; tap < 9; tap++)
            for (long k = 0; k < from; k++)
                packed[(o / LANES * 9 + tap) * per + k / GROUP][o % LANES][k % GROUP] =
                    rounded(transposed ? weights[(k * 9 + 8 - tap) * in + o] : weights[(o * 9 + tap) * in + k]);
    return (groups *)packed;
}

static floats *pack_bias(const float *bias, long out) {
    float *packed = zeros(out * sizeof(float));
    for (long o = 0; o < out; o++) packed[o] = as_float(rounded(bias[o]));
    return (floats *)packed;
}

// out = conv(in) + bias, where the mask is positive, else 0; then + add; then its positive part, if relu. in is padded;
// bias, mask and add may be null. Constants for the compiler: in's channels, pixels of a tile, blocks of outputs.
INLINE void convolve_(image in, const groups *weights, const floats *bias, const image *mask, const image *add,
                      int relu, image out, const int channels, const int pixels, const int blocks) {
    const int per = channels / GROUP;
    for (long first = 0; first < out.channels; first += blocks * LANES, weights += blocks * 9 * per)
        for (long i = 0; i < out.height; i++)
            for (long j = 0; j < out.width; j += pixels) {
                floats sum[2][TILE];
                UNROLLED(int b = 0; b < blocks; b++)
                    UNROLLED(int q = 0; q < pixels; q++) sum[b][q] = bias ? bias[first / LANES + b] : (floats){};
                for (int tap = 0; tap < 9; tap++) {
                    const number *at = in.data + (i + tap / 3 - 1) * in.row + (j + tap % 3 - 1) * channels;
                    const groups *w = weights + tap * per;
                    for (int k = 0; k < per; k++, w++, at += GROUP)
                        UNROLLED(int q = 0; q < pixels; q++)
                            UNROLLED(int b = 0; b < blocks; b++)
                                sum[b][q] = dot(sum[b][q], (const group *)(at + q * channels), w[b * 9 * per]);
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

static void convolve(image in, const groups *weights, const floats *bias, const image *mask, const image *add, int relu,
                     image out) {
    #define CASE(n) \
        if (in.channels == n && out.channels % (2 * LANES) == 0) \
            convolve_(in, weights, bias, mask, add, relu, out, n, WIDE); \
        else if (in.channels == n) \
            convolve_(in, weights, bias, mask, add, relu, out, n, NARROW);
    CASE(RGB) CASE(16) CASE(32)
    #undef CASE
}

// What a convolution's weights and bias receive, by piece: [pieces][out / LANES][3][3][in] vectors of output channels,
// and [pieces][out / LANES].
typedef struct {
    floats *weights, *bias;
} gradients;

static gradients new_gradients(long in, long out, long pieces) {
    return (gradients){room(pieces * 9 * in * out * sizeof(float)), room(pieces * out * sizeof(float))};
}

static gradients zero_piece(gradients all, long in, long out, long piece) {
    const long size = 9 * in * out / LANES;
    gradients own = {all.weights + piece * size, all.bias + piece * out / LANES};
    memset(own.weights, 0, size * sizeof(floats)), memset(own.bias, 0, out * sizeof(float));
    return own;
}

// Their sums over the pieces, in order: dw [out][3][3][kept] of the first `kept` inputs, db [out].
static void sum_pieces(gradients all, long in, long out, long pieces, long kept, float *dw, float *db) {
    const long size = 9 * in * out / LANES;
    floats *total = all.weights;
    for (long p = 1; p < pieces; p++) {
        for (long i = 0; i < size; i++) total[i] += all.weights[p * size + i];
        for (long i = 0; i < out / LANES; i++) all.bias[i] += all.bias[p * out / LANES + i];
    }
    memcpy(db, all.bias, out * sizeof(float));
    for (long o = 0; o < out; o++)
        for (long tap = 0; tap < 9; tap++)
            for (long k = 0; k < kept; k++)
                dw[(o * 9 + tap) * kept + k] = total[(o / LANES * 9 + tap) * in + k][o % LANES];
}

// Adds what one image gives. in and dy (the output's gradient) are padded; x and g are room for them, in groups.
INLINE void add_gradients_(image in, image dy, gradients to, group *x, groups *g, const int channels, const int part,
                           const int rgb_part) {
    const long row = (in.width + 2) * channels, columns = (in.width + GROUP - 1) / GROUP;
    const int block = channels == RGB ? rgb_part : part;
    for (long i = 0; i < in.height + 2; i++) {
        const number *from = in.data + (i - 1) * in.row - channels;
        for (long k = 0; k < row; k++) x[i * row + k] = join(from[k], from[k + channels]);
    }
    for (long first = 0; first < dy.channels; first += LANES) {
        floats total = {};
        for (long i = 0; i < in.height; i++)
            for (long j = 0; j < columns; j++) {
                const number *at = dy.data + i * dy.row + GROUP * j * dy.channels + first;
                floats left = load(at), right = GROUP == 2 ? load(at + dy.channels) : (floats){};
                g[i * columns + j] = join_lanes(left, right);
                total += left + right;
            }
        to.bias[first / LANES] += total;
        for (int a = 0; a < 3; a++)
            for (int c = 0; c < channels; c += block) {
                floats sum[3][8] = {};
                for (long i = 0; i < in.height; i++) {
                    const group *at = x + (i + a) * row + c;
                    for (long j = 0; j < columns; j++, at += GROUP * channels) {
                        groups gradient = g[i * columns + j];
                        UNROLLED(int b = 0; b < 3; b++)
                            UNROLLED(int k = 0; k < block; k++)
                                sum[b][k] = dot(sum[b][k], at + b * channels + k, gradient);
                    }
                }
                floats *weights = to.weights + (first / LANES * 9 + 3 * a) * channels + c;
                UNROLLED(int b = 0; b < 3; b++)
                    UNROLLED(int k = 0; k < block; k++) weights[b * channels + k] += sum[b][k];
            }
    }
}

static void add_gradients(image in, image dy, gradients to, group *x, groups *g) {
    if (in.channels == RGB) add_gradients_(in, dy, to, x, g, RGB, PART);
    if (in.channels == 16) add_gradients_(in, dy, to, x, g, 16, PART);
    if (in.channels == 32) add_gradients_(in, dy, to, x, g, 32, PART);
}

// --- max-pooling -----------------------------------------------------------------------------------------------------

// The bits of numbers, as integers of the same order in which -0 and 0 are equal, and back.
typedef VECTOR(key) keys;
INLINE keys negative(keys x) { return x >> (8 * sizeof(key) - 1); }
INLINE keys to_keys(keys x) { return ((x & (key)~LOWEST) ^ negative(x)) - negative(x); }
INLINE keys from_keys(keys k) { return ((k ^ negative(k)) - negative(k)) | (negative(k) & (key)LOWEST); }

// place: which of the window's nine values is its first largest (as in torch), laid out like y; may be null
static void pool(image x, image y, uint8_t *place) {
    for (long r = 0; r < y.height; r++) {
        const number *middle = x.data + 2 * r * x.row;
        long up = r > 0, down = 2 * r + 1 < x.height;
        for (long j = 0; j < y.width; j++) {
            long left = j > 0, right = 2 * j + 1 < x.width;
            for (long first = 0; first < x.channels; first += LANES) {
                keys best = (keys){} + (key)LOWEST, at = (keys){} + 4;
                for (long i = -up; i <= down; i++)
                    for (long k = -left; k <= right; k++) {
                        keys found;
                        memcpy(&found, middle + i * x.row + (2 * j + k) * x.channels + first, sizeof found);
                        found = to_keys(found);
                        keys more = found > best;
                        best = (found & more) | (best & ~more);
                        at = ((key)(3 * i + k + 4) & more) | (at & ~more);
                    }
                best = from_keys(best);
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
                bytes p[2][2] = {};
                for (int down = 0; down < 2; down++)
                    for (int right = 0; right < 2; right++)
                        if (i + down < dy.height && j + right < dy.width) {
                            long at = (j + right) * dy.channels + first;
                            memcpy(&p[down][right], place + (i + down) * dy.width * dy.channels + at, LANES);
                            g[down][right] = load(dy.data + (i + down) * dy.row + at);
                        }
                #define FROM(down, right, k) only(__builtin_convertvector(p[down][right], ints) == k, g[down][right])
                number *to = dx.data + 2 * i * dx.row + 2 * j * dx.channels + first;
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
#define PIECES 32  // of a batch, at most

// What the backward pass needs of the forward pass, each [n][H][W][c]: where the pool found its values, its output, the
// hidden layer of residual block 1, its output, the hidden layer of block 2.
typedef struct {
    uint8_t *place;
    number *x[2], *hidden[2];
} kept;

// x [n][h][w][in] -> y [n][H][W][c], where H and W are half of h and w, rounded up. weights [c][3][3][in] and
// biases [c]: one of each for every conv. keep may be null.
void block_forward(const number *x, const float **weights, const float **biases, number *y, const kept *keep, long n,
                   long h, long w, long in, long c, int threads) {
    const long H = (h + 1) / 2, W = (w + 1) / 2, size = H * W * c;
    groups *packed[CONVS];
    floats *bias[CONVS];
    for (int k = 0; k < CONVS; k++) packed[k] = pack(weights[k], k ? c : in, c, 0), bias[k] = pack_bias(biases[k], c);
    #pragma omp parallel num_threads(threads)
    {
        image input = new_padded(h, w, in == 3 ? RGB : in), wide = new_padded(h, w, c), active = new_padded(H, W, c),
              hidden = new_padded(H, W, c), local[2] = {new_padded(H, W, c), new_padded(H, W, c)};
        #pragma omp for schedule(dynamic) nowait
        for (long i = 0; i < n; i++) {
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

// dy [n][H][W][c] -> dx [n][h][w][in] (unless null), dw [c][3][3][in] and db [c] of every conv.
void block_backward(const number *x, const float **weights, const number *dy, const kept *keep, number *dx, float **dw,
                    float **db, long n, long h, long w, long in, long c, int threads) {
    const long H = (h + 1) / 2, W = (w + 1) / 2, size = H * W * c, inputs = in == 3 ? RGB : in;
    groups *packed[CONVS] = {0};
    for (int k = dx ? 0 : 1; k < CONVS; k++) packed[k] = pack(weights[k], k ? c : in, c, 1);
    const long pieces = n < PIECES ? n : PIECES;
    gradients sums[CONVS];
    for (int k = 0; k < CONVS; k++) sums[k] = new_gradients(k ? c : inputs, c, pieces);
    #pragma omp parallel num_threads(threads)
    {
        image input = new_padded(h, w, inputs), wide = new_padded(h, w, c), active = new_padded(H, W, c),
              hidden = new_padded(H, W, c), d_hidden = new_padded(H, W, c),
              d[3] = {new_padded(H, W, c), new_padded(H, W, c), new_padded(H, W, c)};
        group *in_groups = room((h + 2) * (w + 2) * (inputs > c ? inputs : c) * sizeof(group));
        groups *dy_groups = room(h * w * sizeof(groups));
        #pragma omp for schedule(dynamic)
        for (long p = 0; p < pieces; p++) {
            gradients to[CONVS];
            for (int k = 0; k < CONVS; k++) to[k] = zero_piece(sums[k], k ? c : inputs, c, p);
            for (long i = n * p / pieces; i < n * (p + 1) / pieces; i++) {
                copy(view(dy + i * size, H, W, c), d[2]);
                for (int r = 1; r >= 0; r--) {
                    image x_ = view(keep->x[r] + i * size, H, W, c);
                    image hidden_ = view(keep->hidden[r] + i * size, H, W, c);
                    copy(hidden_, hidden);
                    add_gradients(hidden, d[r + 1], to[2 + 2 * r], in_groups, dy_groups);
                    convolve(d[r + 1], packed[2 + 2 * r], NULL, &hidden_, NULL, 0, d_hidden);
                    copy_positive(x_, active);
                    add_gradients(active, d_hidden, to[1 + 2 * r], in_groups, dy_groups);
                    convolve(d_hidden, packed[1 + 2 * r], NULL, &x_, &d[r + 1], 0, d[r]);
                }
                pool_gradient(d[0], keep->place + i * size, wide);
                copy(view(x + i * h * w * in, h, w, in), input);
                add_gradients(input, wide, to[0], in_groups, dy_groups);
                if (dx) convolve(wide, packed[0], NULL, NULL, NULL, 0, view(dx + i * h * w * in, h, w, in));
            }
        }
        delete_padded(input), delete_padded(wide), delete_padded(active), delete_padded(hidden);
        delete_padded(d_hidden), delete_padded(d[0]), delete_padded(d[1]), delete_padded(d[2]);
        free(in_groups), free(dy_groups);
        #pragma omp for schedule(dynamic) nowait
        for (int k = 0; k < CONVS; k++) sum_pieces(sums[k], k ? c : inputs, c, pieces, k ? c : in, dw[k], db[k]);
    }
    for (int k = 0; k < CONVS; k++) free(packed[k]), free(sums[k].weights), free(sums[k].bias);
}

// --- the pooling alone -----------------------------------------------------------------------------------------------

// x [n][h][w][c] -> y, place [n][H][W][c]
void pool_forward(const number *x, number *y, uint8_t *place, long n, long h, long w, long c, int threads) {
    const long H = (h + 1) / 2, W = (w + 1) / 2;
    #pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long i = 0; i < n; i++)
        pool(view(x + i * h * w * c, h, w, c), view(y + i * H * W * c, H, W, c), place + i * H * W * c);
}

// dy, place [n][H][W][c] -> dx [n][h][w][c]
void pool_backward(const number *dy, const uint8_t *place, number *dx, long n, long h, long w, long c, int threads) {
    const long H = (h + 1) / 2, W = (w + 1) / 2;
    #pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long i = 0; i < n; i++)
        pool_gradient(view(dy + i * H * W * c, H, W, c), place + i * H * W * c, view(dx + i * h * w * c, h, w, c));
}
