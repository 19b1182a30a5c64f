// 从对数几率里抽一个 token，同 writing/sample.py 的 mark_chances 与 steady_pick：词表有两万个，
// 那里的几十个小算子每一步都要重新进一次缓存。

#include <cmath>

#include "floats.h"

// 从 at 起的八个；过了末尾的是 rest
static inline Floats block(const float* x, Index at, Index size, float rest) {
    if (at + WIDE <= size) return load(x + at);
    Floats value = Floats{} + rest;
    std::memcpy(&value, x + at, (size - at) * sizeof(float));
    return value;
}

static float largest(const float* x, Index size) {
    Floats top = Floats{} - INFINITY;
    for (Index at = 0; at < size; at += WIDE) {
        Floats value = block(x, at, size, -INFINITY);
        top = value > top ? value : top;
    }
    float found = top[0];
    for (int i = 1; i < WIDE; i++) found = top[i] > found ? top[i] : found;
    return found < -1e30f ? -1e30f : found;  // 都被禁止了
}

// 太小的是 0：被禁止的（-inf）一点份也没有
static inline Floats chance(Floats x) { return x > -87.0f ? power(x) : Floats{}; }

static double sum_of(const float* x, Index size) {
    double sum = 0;
    for (Index at = 0; at < size; at += WIDE) sum += total(block(x, at, size, 0));
    return sum;
}

// 前缀和里第一个超过 goal 的；goal 不小于总和 all（照 sum_of 的次序加的）时取最后一个不为 0 的
static Index find(const float* x, Index size, double goal, double all) {
    double below = all * (1 - 1.0 / (1 << 22)), sum = 0;
    if (goal > below) goal = below;
    for (Index at = 0; at < size; at += WIDE) {
        double next = sum + total(block(x, at, size, 0));
        if (next <= goal) {
            sum = next;
            continue;
        }
        Index found = at;
        for (Index i = at; i < at + WIDE && i < size && sum <= goal; i++)
            if (x[i] > 0) {
                sum += x[i];
                found = i;
            }
        return found;
    }
    return size - 1;
}

// logits (rows, size)、marks (count,) -> chances (rows, count)：惩罚之前各个标点的概率
extern "C" void mark_chances(const float* logits, Index rows, Index size, const Index* marks,
                             Index count, float* chances) {
    for (Index row = 0; row < rows; row++, logits += size, chances += count) {
        float top = largest(logits, size);
        double all = 0;
        for (Index at = 0; at < size; at += WIDE)
            all += total(chance(block(logits, at, size, -INFINITY) - top));
        for (Index i = 0; i < count; i++)
            chances[i] = chance(Floats{} + (logits[marks[i]] - top))[0] / all;
    }
}

// 先定是标点还是字，再各在里面抽：tokens (rows,)。temperatures、least（min-p）、uniform 都是 (rows,)；
// 标点照 chances，字照 logits；logits 与 chances 会被改写
extern "C" void steady_pick(float* logits, Index rows, Index size, float* chances,
                            const Index* marks, Index count, const float* uniform,
                            const float* temperatures, const float* least, Index* tokens) {
    for (Index row = 0; row < rows; row++, logits += size, chances += count) {
        double all = 0;
        for (Index i = 0; i < count; i++) {
            if (logits[marks[i]] == -INFINITY) chances[i] = 0;
            logits[marks[i]] = -INFINITY;
        }
        double marked = sum_of(chances, count);
        float top = largest(logits, size);
        for (Index at = 0; at < size; at += WIDE) {
            Floats found = chance((block(logits, at, size, -INFINITY) - top) / temperatures[row]);
            found = found < least[row] ? Floats{} : found;
            Index valid = at + WIDE <= size ? WIDE : size - at;
            std::memcpy(logits + at, &found, valid * sizeof(float));
            all += total(found);
        }
        double share = all > 0 && marked < 1 ? 1 - marked : 0;  // 字都被禁止了就没有它们的份
        double goal = uniform[row] * (marked + share);
        double rest = share > 0 ? (goal - marked) / share * all : 0;
        tokens[row] = goal < marked ? marks[find(chances, count, goal, marked)]
                                    : find(logits, size, rest, all);
    }
}
