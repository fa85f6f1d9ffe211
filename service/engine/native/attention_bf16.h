// The products of attention in AVX-512 BF16: bfloat16 operands, float32 sums.
//
// An instruction adds the products of two pairs to each of 16 sums. Each sum has one fixed order, as
// in attention_kernels.h. The operands are read directly from the KV cache (attention.py has the
// layout).

#pragma once

#include "attention_kernels.h"

namespace chatrpc::attention {

// A pair of bfloat16 in all lanes.
inline __m512bh broadcast_pair(const uint16_t* pair) {
    int32_t bits;
    std::memcpy(&bits, pair, sizeof bits);
    return (__m512bh)_mm512_set1_epi32(bits);
}

inline __m512bh load_pairs(const uint16_t* pairs) { return (__m512bh)_mm512_loadu_si512(pairs); }

// scores[row][16 i + lane] = q[row] . key `lane` of keys[i], a group [dim / 2][16][2].
template <int kRows, int kVectors>
void scores_dot(const uint16_t* q, const uint16_t* const* keys, int dim, float* scores) {
    __m512 sum[kRows][kVectors];
    for (auto& row : sum) std::fill(row, row + kVectors, _mm512_setzero_ps());
    for (int d = 0; d < dim; d += 2) {
        __m512bh key[kVectors];
        for (int i = 0; i < kVectors; ++i) key[i] = load_pairs(keys[i] + d * kGroup);
        for (int r = 0; r < kRows; ++r) {
            const __m512bh x = broadcast_pair(q + r * dim + d);
            for (int i = 0; i < kVectors; ++i) sum[r][i] = _mm512_dpbf16_ps(sum[r][i], x, key[i]);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) {
            _mm512_storeu_ps(scores + r * kSegment + i * kGroup, sum[r][i]);
        }
    }
}

// out[row] += weights[row][t] * value t for the tokens t of the steps [s0, s1), over 16 * kVectors
// dimensions. values[s] + offset is [kVectors][step / 2][16][2]; rows of `out` are `dim` apart.
template <int kRows, int kVectors>
void values_dot(const uint16_t* weights, const uint16_t* const* values, int offset, int s0, int s1,
                int step, int dim, float* out) {
    __m512 sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) sum[r][i] = _mm512_loadu_ps(out + r * dim + i * kGroup);
    }
    for (int s = s0; s < s1; ++s) {
        for (int t = 0; t < step; t += 2) {
            __m512bh value[kVectors];
            for (int i = 0; i < kVectors; ++i) {
                value[i] = load_pairs(values[s] + offset + (i * step + t) * kGroup);
            }
            for (int r = 0; r < kRows; ++r) {
                const __m512bh p = broadcast_pair(weights + r * 2 * kSegment + s * step + t);
                for (int i = 0; i < kVectors; ++i) {
                    sum[r][i] = _mm512_dpbf16_ps(sum[r][i], p, value[i]);
                }
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(out + r * dim + i * kGroup, sum[r][i]);
    }
}

using ScoresDot = void (*)(const uint16_t*, const uint16_t* const*, int, float*);
using ValuesDot = void (*)(const uint16_t*, const uint16_t* const*, int, int, int, int, int, float*);
constexpr ScoresDot kScoresDots[kBlockRows][kBlockVectors] = CHATRPC_BLOCKS(scores_dot);
constexpr ValuesDot kValuesDots[kBlockRows][kBlockVectors] = CHATRPC_BLOCKS(values_dot);

// The products of attention.cpp's `Bf16`.
struct DotProducts {
    static void prepare() {}
    static void release() {}
    static int query_stride(int dim) { return dim; }

    static void put_query(const float* query, int dim, uint16_t* out) {
        for (int d = 0; d < dim; d += kGroup) {
            const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(query + d));
            std::memcpy(out + d, &rounded, sizeof rounded);
        }
    }

    // Scores of `rows` rows against the groups [g0, g1).
    static void scores(const uint16_t* q, const uint16_t* const* keys, int g0, int g1, int rows,
                       int /*step*/, int dim, float* scores) {
        for (int g = g0; g < g1; g += kBlockVectors) {
            const int vectors = std::min(kBlockVectors, g1 - g);
            for (int r = 0; r < rows; r += kBlockRows) {
                const int block = std::min(kBlockRows, rows - r);
                kScoresDots[block - 1][vectors - 1](q + r * dim, keys + g, dim,
                                                    scores + r * kSegment + g * kGroup);
            }
        }
    }

    // The weighted sum of the value steps [s0, s1), `step` tokens each: [dim / 16][step / 2][16][2].
    // Weights have rows of kSegment floats' room; out [rows][dim].
    static void values(const uint16_t* weights, const uint16_t* const* values, int s0, int s1,
                       int rows, int step, int dim, float* out) {
        std::fill(out, out + rows * dim, 0.0f);
        const int at_once = kBlockVectors * kGroup / step;  // steps that stay in the L1 cache
        for (int s = s0; s < s1; s += at_once) {
            const int end = std::min(s1, s + at_once);
            for_slices(dim, kBlockVectors, [&](int first, int width) {
                for (int r = 0; r < rows; r += kBlockRows) {
                    const int block = std::min(kBlockRows, rows - r);
                    kValuesDots[block - 1][width - 1](weights + r * 2 * kSegment, values,
                                                      first * step * kGroup, s, end, step, dim,
                                                      out + r * dim + first * kGroup);
                }
            });
        }
    }
};

// Copies a value step, with zeros for the tokens outside of [lo, hi). These tokens may be NaN, and
// a weight of 0 times NaN is NaN.
inline void copy_values_between(const uint16_t* values, int lo, int hi, int step, int dim,
                                uint16_t* out) {
    for (int d = 0; d < dim; d += kGroup) {
        for (int pair = 0; pair < step / 2; ++pair) {
            const bool first = lo <= 2 * pair && 2 * pair < hi;
            const bool second = lo <= 2 * pair + 1 && 2 * pair + 1 < hi;
            const __mmask32 mask = (first ? 0x55555555u : 0) | (second ? 0xaaaaaaaau : 0);
            const int64_t line = (d / kGroup * (step / 2) + pair) * 2 * kGroup;
            _mm512_storeu_si512(out + line, _mm512_maskz_loadu_epi16(mask, values + line));
        }
    }
}

}  // namespace chatrpc::attention
