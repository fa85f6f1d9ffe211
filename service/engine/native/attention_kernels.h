// The inner loops of attention: a tile of query rows against 16 keys or values at a time.
//
// Each result is a sum in one fixed order (over dimensions, then over tokens from the first to the
// last), so that a row's bits do not depend on how many rows and tokens share the registers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "exp2.h"
#include "simd.h"

namespace chatrpc::attention {

constexpr int kGroup = 16;     // tokens in the lanes of a vector; a block is some whole groups
constexpr int kSegment = 256;  // positions between two rescalings of a row's sum
constexpr int kTileRows = 32;  // query rows that share a pass over keys and values
constexpr int kMaxDim = 256;
constexpr float kLowest = -1e30f;  // start value of a maximum: finite, and below any score

// 32 weights of a row, with all 24 significant bits or 8. They may overlie the scores: weights lie
// no further than the scores that they came from.
inline void put_weights(float* weights, Floats first, Floats second) {
    store(weights, first);
    store(weights + kGroup, second);
}

#if defined(CHATRPC_AVX512) && defined(__AVX512BF16__)
inline void put_weights(uint16_t* weights, Floats first, Floats second) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(second.v, first.v);
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
        step(v, static_cast<Mask>(mask), static_cast<Mask>(mask >> kGroup));
    };
    if (lo >= hi) return;
    int v = lo & -kWidth;
    if (lo > v) {
        masked(v);
        v += kWidth;
    }
    constexpr Mask kAll = 0xffff;
    for (; v + kWidth <= hi; v += kWidth) step(v, kAll, kAll);
    if (v < hi) masked(v);
}

// Applies a soft cap to one row's scores in the lanes [lo, hi). The inputs are the scores times
// 2 log2(e) / softcap. The outputs are base-2 logarithms: `cap` is softcap * log2(e).
inline void cap_scores(float* scores, int lo, int hi, float cap) {
    const Floats one = broadcast(1.0f);
    for (int v = lo & -kGroup; v < hi; v += kGroup) {
        const Floats y = load(scores + v);
        const Floats e = exp2<true>(copy_sign(y, broadcast(-1.0f)));
        const Floats tanh = (one - e) / (one + e);
        store(scores + v, copy_sign(tanh * broadcast(cap), y));
    }
}

// The largest of one row's scores in the lanes [lo, hi).
inline float largest_score(const float* scores, int lo, int hi) {
    Floats first = broadcast(kLowest), second = first;
    for_lanes(lo, hi, [&](int v, Mask low, Mask high) {
        first = max_where(low, first, load(scores + v));
        second = max_where(high, second, load(scores + v + kGroup));
    });
    return largest(max(first, second));
}

// Converts one row's scores (base-2 logarithms) in place to weights relative to the largest. A row
// attends to the lanes [lo, hi); the other lanes of [begin, end) get weight 0. Returns the sum of
// the weights.
template <typename Weight>
inline float weigh(float* scores, int lo, int hi, int begin, int end, float largest) {
    constexpr bool kFine = sizeof(Weight) == 4;
    constexpr int kWidth = 2 * kGroup;
    auto* weights = reinterpret_cast<Weight*>(scores);
    const Floats shift = broadcast(largest), zero = zero_floats();
    Floats first_sum = zero, second_sum = zero;
    for (int v = begin & -kWidth; v < (lo & -kWidth); v += kWidth) {
        put_weights(weights + v, zero, zero);
    }
    for_lanes(lo, hi, [&](int v, Mask low, Mask high) {
        const Floats p = keep(low, exp2<kFine>(load(scores + v) - shift));
        const Floats q = keep(high, exp2<kFine>(load(scores + v + kGroup) - shift));
        first_sum = first_sum + p;
        second_sum = second_sum + q;
        put_weights(weights + v, p, q);
    });
    for (int v = (hi + kWidth - 1) & -kWidth; v < end; v += kWidth) {
        put_weights(weights + v, zero, zero);
    }
    return sum(first_sum + second_sum);
}

// scores[row][16 i + lane] = q[row] . key `lane` of keys[i], a group [dim][16].
template <int kRows, int kVectors>
void scores_block(const float* q, const float* const* keys, int dim, float* scores) {
    Floats sum[kRows][kVectors];
    for (auto& row : sum) std::fill(row, row + kVectors, zero_floats());
    for (int d = 0; d < dim; ++d) {
        Floats key[kVectors];
        for (int i = 0; i < kVectors; ++i) key[i] = load(keys[i] + d * kGroup);
        for (int r = 0; r < kRows; ++r) {
            const Floats x = broadcast(q[r * dim + d]);
            for (int i = 0; i < kVectors; ++i) sum[r][i] = fma(x, key[i], sum[r][i]);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) store(scores + r * kSegment + i * kGroup, sum[r][i]);
    }
}

// out[row] += weights[row][t] * value t for t in [t0, t1), over 16 * kVectors dimensions.
// values[t / 16] is a group [dim / 16][16 tokens][16]; `out` has rows of `dim`.
template <int kRows, int kVectors>
void values_block(const float* weights, const float* const* values, int t0, int t1, int dim,
                  float* out) {
    Floats sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) sum[r][i] = load(out + r * dim + i * kGroup);
    }
    for (int t = t0; t < t1;) {
        const float* group = values[t / kGroup];
        const int end = std::min(t1, (t / kGroup + 1) * kGroup);
        for (; t < end; ++t) {
            const float* line = group + t % kGroup * kGroup;
            Floats value[kVectors];
            for (int i = 0; i < kVectors; ++i) value[i] = load(line + i * kGroup * kGroup);
            for (int r = 0; r < kRows; ++r) {
                const Floats p = broadcast(weights[r * kSegment + t]);
                for (int i = 0; i < kVectors; ++i) sum[r][i] = fma(p, value[i], sum[r][i]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) store(out + r * dim + i * kGroup, sum[r][i]);
    }
}

constexpr int kBlockRows = 6;
constexpr int kBlockVectors = 4;

// The vectors of sums for each of `rows` rows in the registers, next to one operand for each of them
// and a broadcast. With AVX-512, 6 x 4 sums take 29 of 32 registers.
inline int vectors_at_once(int rows) {
#ifdef CHATRPC_AVX512
    return kBlockVectors;
#else
    return rows == 1 ? 3 : rows == 2 ? 2 : 1;  // of two or four registers each
#endif
}

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

// Calls use(first, width) for the slices of a head's dimensions, of at most `most` vectors: the first
// of them and their number.
template <typename Use>
inline void for_slices(int dim, int most, Use use) {
    const int vectors = dim / kGroup;
    const int slices = (vectors + most - 1) / most;
    for (int slice = 0; slice < slices; ++slice) {
        const int first = vectors * slice / slices;
        use(first, vectors * (slice + 1) / slices - first);
    }
}

// Scores of `rows` rows against the groups [g0, g1).
inline void scores_fma(const float* q, const float* const* keys, int g0, int g1, int rows, int dim,
                       float* scores) {
    const int most = vectors_at_once(rows);
    for (int g = g0; g < g1; g += most) {
        const int vectors = std::min(most, g1 - g);
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
        for_slices(dim, vectors_at_once(rows), [&](int first, int width) {
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
    for (int i = 0; i < lines; ++i, packed += 2 * kGroup, out += 2 * kGroup) {
        unpack_pairs(packed, out, out + kGroup);
    }
}

}  // namespace chatrpc::attention
