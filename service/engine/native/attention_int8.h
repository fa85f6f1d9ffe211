// A KV cache of int8: each key and each value of a token and head has one scale.
//
// Keys and queries are rotated before they are rounded, like the activations of linear layers
// (QuaRot, arXiv 2404.00456): some dimensions of keys are far larger than the others. A rotation does
// not change a product of a query and a key.
// A key is stored plus 128, as an unsigned byte, because a product of bytes has one unsigned operand.
// A token whose key or value is not finite has NaN as its scales, so every row that attends to it is
// NaN. attention.py describes the layout.

#pragma once

#include <cmath>
#include <limits>

#include "attention_kernels.h"
#include "quantize.h"

namespace chatrpc::attention {

constexpr int kQuad = 4;  // dimensions of a key, or tokens' values, in a word of 32 bits

// Applies the Walsh-Hadamard transform to each 64 dimensions of a head, or to each 16 if 64 do not
// divide them. The transform multiplies a product of two heads by its width, which is returned.
inline int rotate_head(float* x, int dim) {
    if (dim % kBlock != 0) {
        for (int d = 0; d < dim; d += kGroup) store(x + d, hadamard(load(x + d)));
        return kGroup;
    }
    for (int d = 0; d < dim; d += kBlock) {
        Floats v[4];
        for (int i = 0; i < 4; ++i) v[i] = load(x + d + i * kGroup);
        hadamard(v);
        for (int i = 0; i < 4; ++i) store(x + d + i * kGroup, v[i]);
    }
    return kBlock;
}

// Quantizes a head's key or value: x ~ scale * out. Returns the scale, or NaN if an element of x is
// not finite.
inline float quantize_head(const float* x, int dim, int8_t* out) {
    Floats magnitude = zero_floats();
    Mask finite = 0xffff;
    for (int d = 0; d < dim; d += kGroup) {
        finite &= finite_lanes(load(x + d));
        magnitude = max(abs(load(x + d)), magnitude);
    }
    if (finite != 0xffff) {
        std::fill(out, out + dim, int8_t{0});
        return std::numeric_limits<float>::quiet_NaN();
    }
    constexpr float kMost = 127.0f, kSmallest = 1e-30f;  // the reciprocal of less may overflow
    const float most = largest(magnitude);
    const Floats factor = broadcast(most < kSmallest ? 0.0f : kMost / most);
    for (int d = 0; d < dim; d += kGroup) {
        float lanes[kGroup];
        store(lanes, load(x + d) * factor);
        for (int i = 0; i < kGroup; ++i) out[d + i] = static_cast<int8_t>(std::lrint(lanes[i]));
    }
    return most < kSmallest ? 0.0f : most / kMost;
}

// Writes a key into a group [dim / 4][16 tokens][4], as token `lane`.
inline void put_key(const int8_t* key, int dim, int lane, uint8_t* group) {
    for (int d = 0; d < dim; d += kQuad) {
        uint32_t word;
        std::memcpy(&word, key + d, sizeof word);
        word ^= 0x80808080u;
        std::memcpy(group + d * kGroup + lane * kQuad, &word, sizeof word);
    }
}

// Writes a value into a group [dim / 16][4][16][4 tokens], as token `lane`.
inline void put_value(const int8_t* value, int dim, int lane, int8_t* group) {
    group += lane / kQuad * kGroup * kQuad + lane % kQuad;
    for (int d = 0; d < dim; ++d) {
        group[d / kGroup * kGroup * kGroup + d % kGroup * kQuad] = value[d];
    }
}

// Converts a group of keys to the layout of a float32 cache, [dim][16].
inline void unpack_keys(const uint8_t* keys, const float* scales, int dim, float* out) {
    const Floats scale = load(scales);
    for (int d = 0; d < dim; d += kQuad) {
        uint8_t line[kGroup * kQuad];
        for (int i = 0; i < kGroup * kQuad; ++i) line[i] = keys[d * kGroup + i] ^ 0x80;
        Floats quad[kQuad];
        unpack_quads(reinterpret_cast<const int8_t*>(line), quad);
        for (int i = 0; i < kQuad; ++i) store(out + (d + i) * kGroup, quad[i] * scale);
    }
}

// Converts a group of values to the layout of a float32 cache, [dim / 16][16 tokens][16].
inline void unpack_values(const int8_t* values, const float* scales, int dim, float* out) {
    for (int d = 0; d < dim; d += kGroup) {
        for (int t = 0; t < kGroup; t += kQuad) {
            Floats quad[kQuad];
            unpack_quads(values + (d + t) * kGroup, quad);
            for (int i = 0; i < kQuad; ++i) {
                store(out + (d + t + i) * kGroup, quad[i] * broadcast(scales[t + i]));
            }
        }
    }
}

#ifdef CHATRPC_AVX512

// The products of attention in AVX-512 VNNI: bytes of the cache with the two bytes of queries or
// weights of 16 bits. Their sums are exact.

inline __m512i broadcast_quad(const void* quad) {
    int32_t bits;
    std::memcpy(&bits, quad, sizeof bits);
    return _mm512_set1_epi32(bits);
}

// A query of 16 bits: query[d] ~ scale * (256 * high[d] + low[d]).
struct ByteQuery {
    float scale;
    int32_t offset;  // what 128 added to each byte of a key adds to the product, negated
};

// Rounds a query to row `r` of `bytes`: the high bytes of all rows, [dim / 4][kTileRows][4], then
// their low bytes.
inline ByteQuery put_query_bytes(const float* query, int dim, int r, int8_t* bytes) {
    constexpr float kMost = 127 * 256 + 127;
    __m512 largest = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += kGroup) {
        largest = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(query + d)), largest);
    }
    const float most = _mm512_reduce_max_ps(largest);
    const __m512 factor = _mm512_set1_ps(most < 1e-30f ? 0.0f : kMost / most);
    __m512i sum = _mm512_setzero_si512();
    __mmask16 finite = 0xffff;
    for (int d = 0; d < dim; d += kGroup) {
        const __m512 x = _mm512_loadu_ps(query + d);
        finite &= finite_lanes({x});
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, factor));
        const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(rounded, 24), 24);
        const __m512i high = _mm512_srai_epi32(_mm512_sub_epi32(rounded, low), 8);
        sum = _mm512_add_epi32(sum, rounded);
        int8_t of_vector[2][kGroup];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(of_vector[0]), _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(of_vector[1]), _mm512_cvtepi32_epi8(low));
        for (int i = 0; i < kGroup; i += kQuad) {
            int8_t* const quad = bytes + (d + i) * kTileRows + r * kQuad;
            std::memcpy(quad, of_vector[0] + i, kQuad);
            std::memcpy(quad + dim * kTileRows, of_vector[1] + i, kQuad);
        }
    }
    const float nan = std::numeric_limits<float>::quiet_NaN();
    return {finite == 0xffff ? most / kMost : nan, -128 * _mm512_reduce_add_epi32(sum)};
}

// 16 sums of products. With __m512i, GCC 12 copies each sum to another register and back, for which
// there are too few.
typedef int Sums __attribute__((vector_size(64)));

// Sums that begin where a call with the high bytes left them, or at 0.
template <bool kLow>
inline Sums first_sums(const float* products) {
    if constexpr (!kLow) return Sums{};
    return (Sums)_mm512_slli_epi32(_mm512_loadu_si512(products), 8);
}

// Adds the products of each four bytes; those of `a` are unsigned.
inline Sums add_products(Sums sums, __m512i a, __m512i b) {
    return (Sums)_mm512_dpbusd_epi32((__m512i)sums, a, b);
}

// scores[row][16 i + lane] = q[row] . key `lane` of keys[i], a group [dim / 4][16][4]. The first call
// has the high bytes of the queries, and the second one the low bytes: it writes the scores. The
// scales of the keys are key_scales[16 i + lane].
template <bool kLow, int kRows, int kVectors>
void scores_bytes(const int8_t* q, const ByteQuery* queries, const uint8_t* const* keys,
                  const float* key_scales, int dim, float* scores) {
    Sums sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) {
            sum[r][i] = first_sums<kLow>(scores + r * kSegment + i * kGroup);
        }
    }
    for (int d = 0; d < dim; d += kQuad) {
        __m512i key[kVectors];
        for (int i = 0; i < kVectors; ++i) key[i] = _mm512_loadu_si512(keys[i] + d * kGroup);
        for (int r = 0; r < kRows; ++r) {
            const __m512i x = broadcast_quad(q + d * kTileRows + r * kQuad);
            for (int i = 0; i < kVectors; ++i) {
                sum[r][i] = add_products(sum[r][i], key[i], x);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        const __m512i offset = _mm512_set1_epi32(queries[r].offset);
        const __m512 scale = _mm512_set1_ps(queries[r].scale);
        for (int i = 0; i < kVectors; ++i) {
            float* const out = scores + r * kSegment + i * kGroup;
            if constexpr (kLow) {
                const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32((__m512i)sum[r][i], offset));
                const __m512 factor = _mm512_mul_ps(scale, _mm512_loadu_ps(key_scales + i * kGroup));
                _mm512_storeu_ps(out, _mm512_mul_ps(product, factor));
            } else {
                _mm512_storeu_si512(out, (__m512i)sum[r][i]);
            }
        }
    }
}

// Converts one row's scores in place to weights, like `weigh`, and multiplies each by the scale of
// its value. The products are rounded to 16 bits: for each four tokens their high bytes, then their
// low bytes. Returns the sum of the weights, and the scale of the rounded products.
struct ByteWeights {
    float total;
    float scale;
};

inline ByteWeights weigh_bytes(float* scores, int lo, int hi, int begin, int end, float largest,
                               const float* value_scales) {
    constexpr float kMost = 65535.0f;
    const __m512 shift = _mm512_set1_ps(largest);
    __m512 sum = _mm512_setzero_ps(), second_sum = sum, most = sum;
    for_lanes(lo, hi, [&](int v, __mmask16 low, __mmask16 high) {
        const auto weigh = [&](float* lanes, __mmask16 mask, const float* scales, __m512& total) {
            const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(lanes), shift);
            const __m512 p = _mm512_maskz_mov_ps(mask, exp2<false>({x}).v);
            const __m512 product = _mm512_maskz_mul_ps(mask, p, _mm512_loadu_ps(scales));
            total = _mm512_add_ps(total, p);
            most = _mm512_max_ps(product, most);
            _mm512_storeu_ps(lanes, product);
        };
        weigh(scores + v, low, value_scales + v, sum);
        weigh(scores + v + kGroup, high, value_scales + v + kGroup, second_sum);
    });
    const float largest_product = _mm512_reduce_max_ps(most);
    const __m512 factor =
        _mm512_set1_ps(largest_product < 1e-30f ? 0.0f : kMost / largest_product);
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 0, 0, 0, 0);
    const __m512i high_then_low = _mm512_broadcast_i32x4(
        _mm_setr_epi8(1, 5, 9, 13, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1));
    auto* bytes = reinterpret_cast<uint8_t*>(scores);
    for (int v = begin; v < end; v += kGroup) {
        __m512i rounded = _mm512_setzero_si512();
        if (v + kGroup > (lo & -2 * kGroup) && v < hi) {
            rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(scores + v), factor));
        }
        const __m512i split = _mm512_shuffle_epi8(rounded, high_then_low);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + 2 * v),
                            _mm512_castsi512_si256(_mm512_permutexvar_epi64(order, split)));
    }
    const float total = _mm512_reduce_add_ps(_mm512_add_ps(sum, second_sum));
    return {total, largest_product < 1e-30f ? 0.0f : largest_product / kMost};
}

// out[row] = weights[row] . values for the groups [g0, g1), over 16 * kVectors dimensions. The first
// call has the high bytes of the weights, and the second one the low bytes. values[g] + offset is
// [kVectors][4][16][4]; rows of `out` are `dim` apart.
template <bool kLow, int kRows, int kVectors>
void values_bytes(const uint8_t* weights, const ByteWeights* rows, const int8_t* const* values,
                  int offset, int g0, int g1, int dim, float* out) {
    Sums sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) sum[r][i] = first_sums<kLow>(out + r * dim + i * kGroup);
    }
    for (int g = g0; g < g1; ++g) {
        for (int t = 0; t < kGroup; t += kQuad) {
            __m512i value[kVectors];
            for (int i = 0; i < kVectors; ++i) {
                value[i] = _mm512_loadu_si512(values[g] + offset + (i * kGroup + t) * kGroup);
            }
            for (int r = 0; r < kRows; ++r) {
                const __m512i p = broadcast_quad(weights + r * kSegment * 4 + 2 * (g * kGroup + t));
                for (int i = 0; i < kVectors; ++i) {
                    sum[r][i] = add_products(sum[r][i], p, value[i]);
                }
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kVectors; ++i) {
            float* const at = out + r * dim + i * kGroup;
            if constexpr (kLow) {
                const __m512 scale = _mm512_set1_ps(rows[r].scale);
                _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_cvtepi32_ps((__m512i)sum[r][i]), scale));
            } else {
                _mm512_storeu_si512(at, (__m512i)sum[r][i]);
            }
        }
    }
}

template <int kRows, int kVectors>
void scores_of_bytes(const int8_t* q, const ByteQuery* queries, const uint8_t* const* keys,
                     const float* key_scales, int dim, float* scores) {
    scores_bytes<false, kRows, kVectors>(q, queries, keys, key_scales, dim, scores);
    scores_bytes<true, kRows, kVectors>(q + dim * kTileRows, queries, keys, key_scales, dim, scores);
}

template <int kRows, int kVectors>
void values_of_bytes(const uint8_t* weights, const ByteWeights* rows, const int8_t* const* values,
                     int offset, int g0, int g1, int dim, float* out) {
    values_bytes<false, kRows, kVectors>(weights, rows, values, offset, g0, g1, dim, out);
    values_bytes<true, kRows, kVectors>(weights + kQuad, rows, values, offset, g0, g1, dim, out);
}

using ScoresBytes = void (*)(const int8_t*, const ByteQuery*, const uint8_t* const*, const float*,
                             int, float*);
using ValuesBytes = void (*)(const uint8_t*, const ByteWeights*, const int8_t* const*, int, int, int,
                             int, float*);
constexpr ScoresBytes kScoresBytes[kBlockRows][kBlockVectors] = CHATRPC_BLOCKS(scores_of_bytes);
constexpr ValuesBytes kValuesBytes[kBlockRows][kBlockVectors] = CHATRPC_BLOCKS(values_of_bytes);

#endif

}  // namespace chatrpc::attention
