/* What the kernels in C share: registers of floats, and functions that a compiler can apply to many at once. */
#ifndef WORLDMODEL_NATIVE_H
#define WORLDMODEL_NATIVE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* LANES fill a register; what the way back holds of a group, five times TILES, fits into all of them. */
#if defined(__AVX512F__)
#define LANES 16
#define TILES 4
#elif defined(__AVX__)
#define LANES 8
#define TILES 2
#else
#define LANES 4
#define TILES 4
#endif
#define GROUP (LANES * TILES)
#define CHUNK 16 /* rows of a state that stay in registers while the positions go by */

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep") /* the arrays of the loop do not overlap */
#endif

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef float four __attribute__((vector_size(16), may_alias));

INLINE float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    const float n = rintf(x * 1.44269504f), r = x - n * 0.693147181f;
    const float p = 0.49999994f + r * (0.1666652f + r * (0.041668393f + r * (0.008368781f + r * 0.0013814471f)));
    const union {
        int32_t bits;
        float number;
    } two_to_n = {((int32_t)n + 127) << 23};
    return (1.0f + r * (1.0f + r * p)) * two_to_n.number;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* log(1 + e) = 2 artanh(e / (2 + e)): no digits are lost where e is small. */
INLINE float softplus(float x)
{
    const float e = exponential(x < 0.0f ? x : -x), s = e / (2.0f + e), q = s * s;
    const float series = 1.0f + q * (0.33333206f + q * (0.2001081f + q * (0.14000423f + q * 0.14007562f)));
    return (x > 0.0f ? x : 0.0f) + 2.0f * s * series;
}

INLINE four quarter(vec x)
{
    const union {
        vec all;
        four parts[LANES / 4];
    } u = {x};
    four sum = u.parts[0];
    for (int i = 1; i < LANES / 4; i++) sum += u.parts[i];
    return sum;
}

/* What decays below the normal numbers is zero, and not slow, between these two. */
static inline unsigned int flush_tiny(void)
{
#if defined(__x86_64__)
    const unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);
    return mode;
#else
    return 0;
#endif
}

static inline void restore_mode(unsigned int mode)
{
#if defined(__x86_64__)
    _mm_setcsr(mode);
#else
    (void)mode;
#endif
}

#endif
