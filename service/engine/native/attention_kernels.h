// The inner loops of attention: a tile of query rows against 16 keys or values at a time.
//
// Each result is a sum in one fixed order (over dimensions, then over tokens from the first to the
// last), so that a row's bits do not depend on how many rows and tokens share the registers.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace chatrpc::attention {

constexpr int kGroup = 16;     // tokens in the lanes of a vector; a block is some whole groups
constexpr int kSegment = 256;  // positions between two rescalings of a row's sum
constexpr int kTileRows = 32;  // query rows that share a pass over keys and values
constexpr int kMaxDim = 256;
constexpr float kLowest = -1e30f;  // start value of a maximum: finite, and below any score

// 2^x for x <= 0, with a relative error of 1.4e-7, or of 8.6e-5 for results that are rounded to
// bfloat16, whose error is 2e-3. The polynomials are fitted to 2^f over [0, 1) for the least
// relative error, with 2^0 = 1 exactly.
template <bool kFine>
inline __m512 exp2_ps(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p;
    if constexpr (kFine) {
        p = _mm512_set1_ps(1.867146697e-3f);
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.016995318e-3f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.579993874e-2f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.401644439e-1f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931512952e-1f));
    } else {
        p = _mm512_set1_ps(7.706706226e-2f);
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.276449800e-1f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.951168180e-1f));
    }
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);  // times 2^floor(x)
}

// Rounds 16 floats to bfloat16, ties to even. NaN stays NaN.
inline __m256i to_bf16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}

// 32 weights of a row, with all 24 significant bits or 8. They may overlie the scores: weights lie
// no further than the scores that they came from.
inline void put_weights(float* weights, __m512 first, __m512 second) {
    _mm512_storeu_ps(weights, first);
    _mm512_storeu_ps(weights + kGroup, second);
}

#ifdef __AVX512BF16__
inline void put_weights(uint16_t* weights, __m512 first, __m512 second) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(second, first);
    std::memcpy(weights, &rounded, sizeof rounded);
}
#endif

// Calls step(v, first, second) for v, v + 32, ... so that the masks of the lanes at v and v + 16
// are those of [lo, hi), in order.
template <typename Step>
inline void for_lanes(int lo, int hi, Step step) {
    constexpr int kWidth = 2 * kGroup;
    const auto masked = [&](int v) {
        uint32_t mask = ~uint32_t{0};
        if (lo > v) mask &= ~uint32_t{0} << (lo - v);
        if (hi < v + kWidth) mask &= ~uint32_t{0} >> (v + kWidth - hi);
        step(v, static_cast<__mmask16>(mask), static_cast<__mmask16>(mask >> kGroup));
    };
    if (lo >= hi) return;
    int v = lo & -kWidth;
    if (lo > v) {
        masked(v);
        v += kWidth;
    }
    constexpr auto kAll = static_cast<__mmask16>(0xffff);
    for (; v + kWidth <= hi; v += kWidth) step(v, kAll, kAll);
    if (v < hi) masked(v);
}

// Applies a soft cap to one row's scores in the lanes [lo, hi). The inputs are the scores times
// 2 log2(e) / softcap. The outputs are base-2 logarithms: `cap` is softcap * log2(e).
inline void cap_scores(float* scores, int lo, int hi, float cap) {
    const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-0.0f);
    for (int v = lo & -kGroup; v < hi; v += kGroup) {
        const __m512 y = _mm512_loadu_ps(scores + v);
        const __m512 e = exp2_ps<true>(_mm512_or_ps(y, minus));
        const __m512 tanh = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
        const __m512 capped = _mm512_mul_ps(tanh, _mm512_set1_ps(cap));
        _mm512_storeu_ps(scores + v, _mm512_or_ps(capped, _mm512_and_ps(y, minus)));
    }
}

// The largest of one row's scores in the lanes [lo, hi).
inline float largest_score(const float* scores, int lo, int hi) {
    __m512 first = _mm512_set1_ps(kLowest), second = first;
    for_lanes(lo, hi, [&](int v, __mmask16 low, __mmask16 high) {
        first = _mm512_mask_max_ps(first, low, first, _mm512_loadu_ps(scores + v));
        second = _mm512_mask_max_ps(second, high, second, _mm512_loadu_ps(scores + v + kGroup));
    });
    return _mm512_reduce_max_ps(_mm512_max_ps(first, second));
}

// Converts one row's scores (base-2 logarithms) in place to weights relative to the largest. A row
// attends to the lanes [lo, hi); the other lanes of [begin, end) get weight 0. Returns the sum of
// the weights.
template <typename Weight>
inline float weigh(float* scores, int lo, int hi, int begin, int end, float largest) {
    constexpr bool kFine = sizeof(Weight) == 4;
    constexpr int kWidth = 2 * kGroup;
    auto* weights = reinterpret_cast<Weight*>(scores);
    const __m512 shift = _mm512_set1_ps(largest), zero = _mm512_setzero_ps();
    __m512 sum = zero, second_sum = zero;
    for (int v = begin & -kWidth; v < (lo & -kWidth); v += kWidth) {
        put_weights(weights + v, zero, zero);
    }
    for_lanes(lo, hi, [&](int v, __mmask16 low, __mmask16 high) {
        const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(scores + v), shift);
        const __m512 y = _mm512_sub_ps(_mm512_loadu_ps(scores + v + kGroup), shift);
        const __m512 p = _mm512_maskz_mov_ps(low, exp2_ps<kFine>(x));
        const __m512 q = _mm512_maskz_mov_ps(high, exp2_ps<kFine>(y));
        sum = _mm512_add_ps(sum, p);
        second_sum = _mm512_add_ps(second_sum, q);
        put_weights(weights + v, p, q);
    });
    for (int v = (hi + kWidth - 1) & -kWidth; v < end; v += kWidth) {
        put_weights(weights + v, zero, zero);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sum, second_sum));
}

// scores[row][16 i + lane] = q[row] . key `lane` of keys[i], a group [dim][16].
template <int kRows, int kVectors>
void scores_block(const float* q, const float* const* keys, int dim, float* scores) {
    __m512 sum[kRows][kVectors];
    for (auto& row : sum) std::fill(row, row + kVectors, _mm512_setzero_ps());
    for (int d = 0; d < dim; ++d) {
        __m512 key[kVectors];
        for (int i = 0; i < kVectors; ++i) key[i] = _mm512_loadu_ps(keys[i] + d * kGroup);
        for (int r = 0; r < kRows; ++r) {
            const __m512 x = _mm512_set1_ps(q[r * dim + d]);
            for (int i = 0; i < kVectors; ++i) sum[r][i] = _mm512_fmadd_ps(x, key[i], sum[r][i]);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) {
            _mm512_storeu_ps(scores + r * kSegment + i * kGroup, sum[r][i]);
        }
    }
}

// out[row] += weights[row][t] * value t for t in [t0, t1), over 16 * kVectors dimensions.
// values[t / 16] is a group [dim / 16][16 tokens][16]; `out` has rows of `dim`.
template <int kRows, int kVectors>
void values_block(const float* weights, const float* const* values, int t0, int t1, int dim,
                  float* out) {
    __m512 sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) sum[r][i] = _mm512_loadu_ps(out + r * dim + i * kGroup);
    }
    for (int t = t0; t < t1;) {
        const float* group = values[t / kGroup];
        const int end = std::min(t1, (t / kGroup + 1) * kGroup);
        for (; t < end; ++t) {
            const float* line = group + t % kGroup * kGroup;
            __m512 value[kVectors];
            for (int i = 0; i < kVectors; ++i) {
                value[i] = _mm512_loadu_ps(line + i * kGroup * kGroup);
            }
            for (int r = 0; r < kRows; ++r) {
                const __m512 p = _mm512_set1_ps(weights[r * kSegment + t]);
                for (int i = 0; i < kVectors; ++i) {
                    sum[r][i] = _mm512_fmadd_ps(p, value[i], sum[r][i]);
                }
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(out + r * dim + i * kGroup, sum[r][i]);
    }
}

constexpr int kBlockRows = 6;     // 6 x 4 sums, 4 operands and a broadcast: 29 of 32 registers
constexpr int kBlockVectors = 4;

using ScoresBlock = void (*)(const float*, const float* const*, int, float*);
using ValuesBlock = void (*)(const float*, const float* const*, int, int, int, float*);

#define CHATRPC_BLOCKS(f) {                                  \
    {f<1, 1>, f<1, 2>, f<1, 3>, f<1, 4>},                    \
    {f<2, 1>, f<2, 2>, f<2, 3>, f<2, 4>},                    \
    {f<3, 1>, f<3, 2>, f<3, 3>, f<3, 4>},                    \
    {f<4, 1>, f<4, 2>, f<4, 3>, f<4, 4>},                    \
    {f<5, 1>, f<5, 2>, f<5, 3>, f<5, 4>},                    \
    {f<6, 1>, f<6, 2>, f<6, 3>, f<6, 4>}}
constexpr ScoresBlock kScoresBlocks[kBlockRows][kBlockVectors] = CHATRPC_BLOCKS(scores_block);
constexpr ValuesBlock kValuesBlocks[kBlockRows][kBlockVectors] = CHATRPC_BLOCKS(values_block);

// Calls use(first, width) for the slices of a head's dimensions, of at most `kBlockVectors` vectors:
// the first of them and their number.
template <typename Use>
inline void for_slices(int dim, Use use) {
    const int vectors = dim / kGroup;
    const int slices = (vectors + kBlockVectors - 1) / kBlockVectors;
    for (int slice = 0; slice < slices; ++slice) {
        const int first = vectors * slice / slices;
        use(first, vectors * (slice + 1) / slices - first);
    }
}

// Scores of `rows` rows against the groups [g0, g1).
inline void scores_fma(const float* q, const float* const* keys, int g0, int g1, int rows, int dim,
                       float* scores) {
    for (int g = g0; g < g1; g += kBlockVectors) {
        const int vectors = std::min(kBlockVectors, g1 - g);
        for (int r = 0; r < rows; r += kBlockRows) {
            const int block = std::min(kBlockRows, rows - r);
            kScoresBlocks[block - 1][vectors - 1](q + r * dim, keys + g, dim,
                                                  scores + r * kSegment + g * kGroup);
        }
    }
}

// The weighted sum of the values [t0, t1): out [rows][dim].
inline void values_fma(const float* weights, const float* const* values, int t0, int t1, int rows,
                       int dim, float* out) {
    std::fill(out, out + rows * dim, 0.0f);
    constexpr int kStride = kBlockVectors * kGroup;  // tokens whose values stay in the L1 cache
    for (int t = t0; t < t1;) {
        const int end = std::min(t1, (t / kStride + 1) * kStride);
        for_slices(dim, [&](int first, int width) {
            const float* shifted[kSegment / kGroup];
            for (int g = t / kGroup; g * kGroup < end; ++g) {
                shifted[g] = values[g] + first * kGroup * kGroup;
            }
            for (int r = 0; r < rows; r += kBlockRows) {
                const int block = std::min(kBlockRows, rows - r);
                kValuesBlocks[block - 1][width - 1](weights + r * kSegment, shifted, t, end, dim,
                                                    out + r * dim + first * kGroup);
            }
        });
        t = end;
    }
}

// Lines of 16 x 2 bfloat16 to two lines of 16 floats each: the first of each pair, the second.
inline void unpack_lines(const uint16_t* packed, int lines, float* out) {
    for (int i = 0; i < lines; ++i) {
        const __m512i pairs = _mm512_loadu_si512(packed + i * 2 * kGroup);
        const __m512i second = _mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000));
        _mm512_storeu_si512(out + i * 2 * kGroup, _mm512_slli_epi32(pairs, 16));
        _mm512_storeu_si512(out + i * 2 * kGroup + kGroup, second);
    }
}

}  // namespace chatrpc::attention
