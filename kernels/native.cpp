// 写诗的一步前向：几个 token 从词向量到对数几率，一次调用。kernels/compiler.py 在使用者的机器上编译它。
//
// 一行乘矩阵的时间都在读权重，所以权重存成 fp16 或 int8，读进寄存器才展开成 fp32。字母见 gpt.py；
// N 个 token 各有自己的缓存行与位置，预填（一行的许多位置）与同批的几首（许多行各一个位置）是同一件事。
// 每个输出只由一个线程按固定的次序累加：结果与线程数、与同批的别人都无关。

#include <cstdint>
#include <cstring>
#include <cmath>
#include <memory>

#include <immintrin.h>

using Index = int64_t;
typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));

constexpr Index WIDE = 8;    // 一个寄存器放几个 fp32
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

// ── 八个一组的算术 ───────────────────────────────────────────────────

static inline Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

static inline float total(Floats value) {
    return ((value[0] + value[4]) + (value[1] + value[5])) +
           ((value[2] + value[6]) + (value[3] + value[7]));
}

static inline Floats widen(const uint16_t* from) {
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}

static inline Floats widen(const int8_t* from) {
    __m128i codes = _mm_loadl_epi64((const __m128i*)from);
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}

// e 的 x 次方，相对误差约 1e-7：x = n·ln2 + r，r 的部分用多项式，2 的 n 次方直接写进指数位
static inline Floats power(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x;
    x = x > 88.0f ? Floats{} + 88.0f : x;
    Floats scaled = x * 1.44269504f + 12582912.0f;  // 加上 1.5·2^23，小数就舍掉了
    Floats n = scaled - 12582912.0f;
    Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats sum = 1.9875691500e-4f * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    sum = sum * (r * r) + r + 1.0f;
    Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
    return sum * (Floats)exponent;
}

// ── 矩阵乘 ───────────────────────────────────────────────────────────

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
    Index n = 0;
    for (; rows - n >= 3; n += 3)  // 三行正好用满十六个寄存器
        tile<3, Weight>(matrix, panel, x + n * matrix.inputs, y + n * matrix.outputs, add);
    if (rows - n == 2) tile<2, Weight>(matrix, panel, x + n * matrix.inputs, y + n * matrix.outputs, add);
    if (rows - n == 1) tile<1, Weight>(matrix, panel, x + n * matrix.inputs, y + n * matrix.outputs, add);
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

// 一个头：q (D,) 看前 count 个键、值；weights 是可以写的 (count 补齐到 WIDE,)
static void attend(const float* q, const float* keys, const float* values, Index count, Index size,
                   float* weights, float* y) {
    float top = -3e38f, by = 1 / std::sqrt((float)size);
    for (Index i = 0; i < count; i++) {
        Floats sum = {};
        for (Index j = 0; j < size; j += WIDE) sum += load(q + j) * load(keys + i * size + j);
        weights[i] = total(sum) * by;
        top = weights[i] > top ? weights[i] : top;
    }
    for (Index i = count; i % WIDE; i++) weights[i] = -3e38f;  // 补齐的没有份
    Floats all = {};
    for (Index i = 0; i < count; i += WIDE) {
        Floats found = power(load(weights + i) - top);
        store(weights + i, found);
        all += found;
    }
    for (Index j = 0; j < size; j += WIDE) {
        Floats sum = {};
        for (Index i = 0; i < count; i++) sum += load(values + i * size + j) * weights[i];
        store(y + j, sum / total(all));
    }
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
    Index sizes[] = {count * width, count * 3 * width, count * 2 * feed, count * feed, heads * longest};
    std::unique_ptr<float[]> memory(new float[sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4]]);
    float *y = memory.get(), *qkv = y + sizes[0], *both = qkv + sizes[1], *mid = both + sizes[2];
    float* weights = mid + sizes[3];

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
                for (Index n = 0; n < count; n++) {  // 先都存好：预填时后面的要看前面的
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
