// 写诗的一步前向：几个 token 从词向量到对数几率，一次调用。kernels/compiler.py 在使用者的机器上编译它。
//
// 一行乘矩阵的时间都在读权重，所以权重存成 fp16 或 int8，读进寄存器才展开成 fp32。字母见 gpt.py；
// N 个 token 各有自己的缓存行与位置，预填（一行的许多位置）与同批的几首（许多行各一个位置）是同一件事。
// 每个输出只由一个线程按固定的次序累加：结果与线程数、与同批的别人都无关。

#include <immintrin.h>

#include <cmath>
#include <memory>

#include "floats.h"

constexpr Index PANEL = 32;  // 权重按这么多个输出一组存放，组里输入在外、输出在内

constexpr Index AHEAD = 2048;  // 提前这么多字节去取权重

// 与 kernels/native.py 里的同名结构一样
struct Matrix {
    const void* weight;  // (组, 输入, PANEL)，fp16 或 int8
    const float* scale;  // 每个输出的比例，只有 int8 有
    const float* gain;   // 先乘在输入上的归一化权重；没有时已经并进 weight
    Index outputs, inputs;
};

struct Model {
    Index layers, heads, size, feed;  // size 是头宽，feed 是前馈宽
    float eps;
    const float* rope;       // (T, 层, cos|sin, q|k, D)
    const Matrix* matrices;  // 每层 qkv、out、gate_up、down，最后是输出层
};

// ── 矩阵乘 ───────────────────────────────────────────────────────────

static inline Floats widen(const uint16_t* from) {
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}

static inline Floats widen(const int8_t* from) {
    __m128i codes = _mm_loadl_epi64((const __m128i*)from);
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}

// ROWS 行输入乘一组权重：y[n] (+)= 组 @ x[n]；valid 是这一组里真有的输出（最后一组可能不满）
template <int ROWS, class Weight>
static void tile(const Matrix& matrix, Index panel, const float* x, float* y, bool add) {
    const Weight* weight = (const Weight*)matrix.weight + panel * PANEL * matrix.inputs;
    Floats sums[ROWS][PANEL / WIDE] = {};
    for (Index k = 0; k < matrix.inputs; k++, weight += PANEL) {
        __builtin_prefetch((const char*)weight + AHEAD);
        for (Index part = 0; part < PANEL / WIDE; part++) {
            Floats wide = widen(weight + part * WIDE);
            for (int n = 0; n < ROWS; n++) sums[n][part] += wide * x[n * matrix.inputs + k];
        }
    }
    Index first = panel * PANEL;
    Index valid = matrix.outputs - first < PANEL ? matrix.outputs - first : PANEL;
    for (int n = 0; n < ROWS; n++) {
        float* to = y + n * matrix.outputs + first;
        const float* found = (const float*)sums[n];
        for (Index j = 0; j < valid; j++) {
            float value = matrix.scale ? found[j] * matrix.scale[first + j] : found[j];
            to[j] = add ? to[j] + value : value;
        }
    }
}

template <class Weight>
static void rows_of(const Matrix& matrix, Index panel, const float* x, Index rows, float* y,
                    bool add) {
    for (; rows >= 3; rows -= 3, x += 3 * matrix.inputs, y += 3 * matrix.outputs)
        tile<3, Weight>(matrix, panel, x, y, add);  // 三行正好用满十六个寄存器
    if (rows == 2) tile<2, Weight>(matrix, panel, x, y, add);
    if (rows == 1) tile<1, Weight>(matrix, panel, x, y, add);
}

// 各线程分着算；要在并行区里调用。x (rows, in) -> y (rows, out)
static void product(const Matrix& matrix, const float* x, Index rows, float* y, bool add = false) {
#pragma omp for
    for (Index panel = 0; panel < (matrix.outputs + PANEL - 1) / PANEL; panel++)
        if (matrix.scale)
            rows_of<int8_t>(matrix, panel, x, rows, y, add);
        else
            rows_of<uint16_t>(matrix, panel, x, rows, y, add);
}

// ── 一层里的其余几步 ─────────────────────────────────────────────────

static void normalize(const float* x, float* y, Index size, float eps, const float* gain) {
    Floats squares = {};
    for (Index i = 0; i < size; i += WIDE) squares += load(x + i) * load(x + i);
    float by = 1 / std::sqrt(total(squares) / size + eps);
    for (Index i = 0; i < size; i += WIDE) {
        Floats value = load(x + i) * by;
        store(y + i, gain ? value * load(gain + i) : value);
    }
}

// x (rows, size) 归一化到 y；要在并行区里调用
static void normalize_rows(const float* x, float* y, Index rows, const Matrix& next, float eps) {
#pragma omp for
    for (Index n = 0; n < rows; n++)
        normalize(x + n * next.inputs, y + n * next.inputs, next.inputs, eps, next.gain);
}

// 旋转位置，就地；归一化的权重与符号已经在表里，见 decoder.py 的 _rope_table
static void rotate(float* x, const float* cos, const float* sin, Index size) {
    for (Index i = 0, j = size / 2; j < size; i++, j++) {
        float low = x[i], high = x[j];
        x[i] = low * cos[i] + high * sin[i];
        x[j] = high * cos[j] + low * sin[j];
    }
}

// 八个寄存器各自的和
static inline Floats totals(const Floats* x) {
    __m256 sums[4];
    for (int i = 0; i < 4; i++) sums[i] = _mm256_hadd_ps((__m256)x[2 * i], (__m256)x[2 * i + 1]);
    __m256 low = _mm256_hadd_ps(sums[0], sums[1]);
    __m256 high = _mm256_hadd_ps(sums[2], sums[3]);
    return (Floats)_mm256_permute2f128_ps(low, high, 0x20) +
           (Floats)_mm256_permute2f128_ps(low, high, 0x31);
}

// y 的 PARTS·WIDE 个数：values 的各行照 weights 加起来
template <int PARTS>
static void blend(const float* values, const float* weights, Index count, Index size, float all,
                  float* y) {
    Floats sums[PARTS] = {};
    for (Index i = 0; i < count; i++)
        for (int part = 0; part < PARTS; part++)
            sums[part] += load(values + i * size + part * WIDE) * weights[i];
    for (int part = 0; part < PARTS; part++) store(y + part * WIDE, sums[part] / all);
}

// 一个头：q (D,) 看前 count 个键、值；weights 是可以写的 (count 补齐到 WIDE,)
static void attend(const float* q, const float* keys, const float* values, Index count, Index size,
                   float* weights, float* y) {
    float by = 1 / std::sqrt((float)size), top = -3e38f;
    for (Index i = 0; i < count; i += WIDE) {
        Floats sums[WIDE] = {};
        for (Index r = 0; r < WIDE; r++) {
            const float* key = keys + (i + r < count ? i + r : i) * size;
            for (Index j = 0; j < size; j += WIDE) sums[r] += load(q + j) * load(key + j);
        }
        store(weights + i, totals(sums) * by);
    }
    for (Index i = count; i % WIDE; i++) weights[i] = -3e38f;  // 补齐的没有份
    for (Index i = 0; i < count; i++) top = weights[i] > top ? weights[i] : top;
    Floats all = {};
    for (Index i = 0; i < count; i += WIDE) {
        Floats found = power(load(weights + i) - top);
        store(weights + i, found);
        all += found;
    }
    float sum = total(all);
    Index j = 0;
    for (; size - j >= 4 * WIDE; j += 4 * WIDE)
        blend<4>(values + j, weights, count, size, sum, y + j);
    for (; j < size; j += WIDE) blend<1>(values + j, weights, count, size, sum, y + j);
}

// ── 一步 ─────────────────────────────────────────────────────────────

// x (N, C) 是词向量，会被改写；cache (层, k|v, rows, H, capacity, D)；logits (wanted, V) 是最后几个的
extern "C" void forward(const Model* given, float* x, Index count, const Index* lines,
                        const Index* places, float* cache, Index rows, Index capacity, Index wanted,
                        float* logits, int threads) {
    const Model& model = *given;
    const Matrix& head = model.matrices[4 * model.layers];
    Index width = head.inputs, size = model.size, heads = model.heads, feed = model.feed;
    Index longest = (capacity + WIDE - 1) / WIDE * WIDE;
    std::unique_ptr<float[]> memory(new float[count * (4 * width + 3 * feed) + heads * longest]);
    float *y = memory.get(), *qkv = y + count * width, *both = qkv + count * 3 * width;
    float *mid = both + count * 2 * feed, *weights = mid + count * feed;

#pragma omp parallel num_threads(threads)
    {
        for (Index layer = 0; layer < model.layers; layer++) {
            const Matrix* matrix = model.matrices + 4 * layer;
            float* keys = cache + 2 * layer * rows * heads * capacity * size;
            float* values = keys + rows * heads * capacity * size;
            normalize_rows(x, y, count, matrix[0], model.eps);
            product(matrix[0], y, count, qkv);
#pragma omp for
            for (Index h = 0; h < heads; h++) {
                for (Index n = 0; n < count; n++) {  // 先都存好：后面的要看前面的
                    float *q = qkv + 3 * n * width + h * size, *k = q + width;
                    const float* turn = model.rope + (places[n] * model.layers + layer) * 4 * size;
                    Index at = ((lines[n] * heads + h) * capacity + places[n]) * size;
                    normalize(q, q, size, model.eps, nullptr);
                    normalize(k, k, size, model.eps, nullptr);
                    rotate(q, turn, turn + 2 * size, size);
                    rotate(k, turn + size, turn + 3 * size, size);
                    std::memcpy(keys + at, k, size * sizeof(float));
                    std::memcpy(values + at, k + width, size * sizeof(float));
                }
                for (Index n = 0; n < count; n++) {
                    Index at = (lines[n] * heads + h) * capacity * size;
                    attend(qkv + 3 * n * width + h * size, keys + at, values + at, places[n] + 1,
                           size, weights + h * longest, y + n * width + h * size);
                }
            }
            product(matrix[1], y, count, x, true);
            normalize_rows(x, y, count, matrix[2], model.eps);
            product(matrix[2], y, count, both);
#pragma omp for
            for (Index n = 0; n < count; n++)  // silu(gate) · up，同 gpt.activate
                for (Index j = 0; j < feed; j += WIDE) {
                    Floats gate = load(both + 2 * n * feed + j);
                    Floats up = load(both + (2 * n + 1) * feed + j);
                    store(mid + n * feed + j, gate / (1.0f + power(Floats{} - gate)) * up);
                }
            product(matrix[3], mid, count, x, true);
        }
        float* last = x + (count - wanted) * width;
        normalize_rows(last, y, wanted, head, model.eps);
        product(head, y, wanted, logits);
    }
}
