// 八个一组的 fp32 算术：用 GCC 与 clang 都有的向量类型写。

#pragma once

#include <cstdint>
#include <cstring>

using Index = int64_t;
typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));

constexpr Index WIDE = 8;  // 一个寄存器放几个 fp32

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
