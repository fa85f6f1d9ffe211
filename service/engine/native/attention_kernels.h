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

// 2^x for x <= 0 to 1.4e-7, or to 2.9e-6 where the result is about to lose all but 8 bits.
// Fitted to 2^f over [0, 1) for the least relative error, with 2^0 = 1 exactly.
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
        p = _mm512_set1_ps(1.342678536e-2f);
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.224231258e-2f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.412802875e-1f));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.930448413e-1f));
    }
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);  // times 2^floor(x)
}

// 16 floats to bfloat16, ties to even; what was NaN stays NaN.
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

// The weights of one row, with 8 significant bits or all 24. They may overlie the scores: a
// vector of weights lies no further than the scores that it came from.
inline void put_weights(float* weights, __m512 p) { _mm512_storeu_ps(weights, p); }

inline void put_weights(uint16_t* weights, __m512 p) {
#ifdef __AVX512BF16__
    const __m256bh rounded = _mm512_cvtneps_pbh(p);
    std::memcpy(weights, &rounded, sizeof rounded);
#else
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights), to_bf16(p));
#endif
}

// Calls step(v, mask) for the vectors v, v + 16, ... that hold the lanes [lo, hi), in order.
template <typename Step>
inline void for_lanes(int lo, int hi, Step step) {
    int v = lo & -kGroup;
    if (lo > v) {
        const int end = std::min(hi - v, kGroup);
        step(v, static_cast<__mmask16>((0xffffu >> (kGroup - end)) & (0xffffu << (lo - v))));
        v += kGroup;
    }
    for (; v + kGroup <= hi; v += kGroup) step(v, static_cast<__mmask16>(0xffff));
    if (v < hi) step(v, static_cast<__mmask16>(0xffffu >> (v + kGroup - hi)));
}

// One row's scores (base-2 logarithms) to weights relative to the largest, in place: a row sees
// the lanes [lo, hi), and the other lanes of [begin, end) get weight 0. With a soft cap the scores
// come as 2 log2(e) / softcap times what is to be capped; `cap` is softcap * log2(e).
template <typename Weight>
inline void weigh(float* scores, int lo, int hi, int begin, int end, float cap, float* maximum,
                  float* total) {
    constexpr bool kFine = sizeof(Weight) == 4;
    auto* weights = reinterpret_cast<Weight*>(scores);
    const __m512 lowest = _mm512_set1_ps(-1e30f);
    if (cap != 0.0f) {
        for_lanes(lo, hi, [&](int v, __mmask16 mask) {
            const __m512 y = _mm512_maskz_loadu_ps(mask, scores + v);
            const __m512 one = _mm512_set1_ps(1.0f);
            const __m512 sign = _mm512_and_ps(y, _mm512_set1_ps(-0.0f));
            const __m512 e = exp2_ps<true>(_mm512_or_ps(y, _mm512_set1_ps(-0.0f)));
            const __m512 tanh = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
            const __m512 capped = _mm512_mul_ps(tanh, _mm512_set1_ps(cap));
            _mm512_mask_storeu_ps(scores + v, mask, _mm512_or_ps(capped, sign));
        });
    }
    __m512 largest = lowest;
    for_lanes(lo, hi, [&](int v, __mmask16 mask) {
        largest = _mm512_mask_max_ps(largest, mask, largest, _mm512_loadu_ps(scores + v));
    });
    *maximum = _mm512_reduce_max_ps(largest);
    const __m512 shift = _mm512_set1_ps(*maximum);
    __m512 sum = _mm512_setzero_ps();
    for (int v = begin; v < (lo & -kGroup); v += kGroup) {
        put_weights(weights + v, _mm512_setzero_ps());
    }
    for_lanes(lo, hi, [&](int v, __mmask16 mask) {
        const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(scores + v), shift);
        const __m512 p = _mm512_maskz_mov_ps(mask, exp2_ps<kFine>(x));
        sum = _mm512_add_ps(sum, p);
        put_weights(weights + v, p);
    });
    for (int v = (hi + kGroup - 1) & -kGroup; v < end; v += kGroup) {
        put_weights(weights + v, _mm512_setzero_ps());
    }
    *total = _mm512_reduce_add_ps(sum);
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
#undef CHATRPC_BLOCKS

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
    const int vectors = dim / kGroup;
    const int slices = (vectors + kBlockVectors - 1) / kBlockVectors;
    constexpr int kStride = kBlockVectors * kGroup;  // tokens whose values stay in the L1 cache
    for (int t = t0; t < t1;) {
        const int end = std::min(t1, (t / kStride + 1) * kStride);
        for (int slice = 0; slice < slices; ++slice) {
            const int first = vectors * slice / slices;
            const int width = vectors * (slice + 1) / slices - first;
            const float* shifted[kSegment / kGroup];
            for (int g = t / kGroup; g * kGroup < end; ++g) {
                shifted[g] = values[g] + first * kGroup * kGroup;
            }
            for (int r = 0; r < rows; r += kBlockRows) {
                const int block = std::min(kBlockRows, rows - r);
                kValuesBlocks[block - 1][width - 1](weights + r * kSegment, shifted, t, end, dim,
                                                    out + r * dim + first * kGroup);
            }
        }
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
