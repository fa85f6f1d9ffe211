// Converts a row of float activations to int8: prologue, block Hadamard transform, quantization.
//
// Everything here is a function of one row, and does not depend on the number of rows, so that a
// row's bits are the same in any batch. Tails are masked vectors: a scalar remainder would round
// differently from the vectors before it.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace chatrpc {

enum Prologue : int32_t { kNone = 0, kRmsNorm = 1, kSiluGate = 2, kGeluTanhGate = 3 };

constexpr int64_t kBlock = 64;         // the Hadamard transform's width and a tile's depth
constexpr int64_t kTileRows = 16;      // rows of activations in a tile
constexpr int64_t kTileBytes = 1024;   // 16 rows (or lines) of 64 bytes

// The parameters of a quantized row that the products need in addition to its int8 values.
struct RowScale {
    float scale;           // scale of the int8 values; NaN if the row has a NaN or an infinity
    int32_t compensation;  // 128 * their sum: weights are stored with 128 added
};

// Fetches weights for the products into the cache while rows are quantized. Fetching is limited by
// memory, quantization by arithmetic.
class Fetch {
  public:
    Fetch(const uint8_t* begin, const uint8_t* end) : next_(begin), end_(end) {}

    // Fetch as many bytes as memory delivers while 64 values are quantized.
    template <int Lines>
    void step() {
        if (next_ >= end_) return;
        for (int i = 0; i < Lines; ++i) _mm_prefetch(next_ + 64 * i, _MM_HINT_T1);
        next_ += 64 * Lines;
    }

  private:
    const uint8_t* next_;
    const uint8_t* end_;
};

// 1 / (1 + e^-x), with an error of 2e-7. NaN stays NaN.
inline __m512 sigmoid(__m512 x) {
    // e^-x is 2^t. Where t is bounded the result is 1e-35. min gives its second operand for NaN.
    const __m512 t = _mm512_min_ps(_mm512_set1_ps(116.0f),
                                   _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
    const __m512 r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // t - floor(t)
    __m512 p = _mm512_set1_ps(1.8775765784e-3f);  // 2^r for r in [0, 1], to 9e-8
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.9893406257e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5826317519e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4015361071e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9315308332e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.9999994040e-1f));
    const __m512 denominator = _mm512_add_ps(_mm512_scalef_ps(p, t), _mm512_set1_ps(1.0f));
    // A reciprocal to 14 bits and one Newton step: full division costs three times as much.
    const __m512 estimate = _mm512_rcp14_ps(denominator);
    const __m512 error = _mm512_fnmadd_ps(denominator, estimate, _mm512_set1_ps(1.0f));
    return _mm512_fmadd_ps(estimate, error, estimate);
}

template <Prologue P>
inline __m512 load_gated(const float* x, int64_t size, int64_t k, __mmask16 mask) {
    const __m512 value = _mm512_maskz_loadu_ps(mask, x + k);
    if constexpr (P == kSiluGate) {
        const __m512 up = _mm512_maskz_loadu_ps(mask, x + size + k);
        return _mm512_mul_ps(_mm512_mul_ps(value, sigmoid(value)), up);
    } else if constexpr (P == kGeluTanhGate) {
        // 0.5 (1 + tanh(u)) is sigmoid(2u), with u = sqrt(2/pi) (x + 0.044715 x^3).
        const __m512 up = _mm512_maskz_loadu_ps(mask, x + size + k);
        const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(value, value),
                                             _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
        const __m512 u = _mm512_mul_ps(_mm512_mul_ps(value, cubic), _mm512_set1_ps(1.5957691216f));
        return _mm512_mul_ps(_mm512_mul_ps(value, sigmoid(u)), up);
    } else {
        return value;
    }
}

// Replaces lanes i and i ^ 2^bit by their sum (in the lane without the bit) and their difference.
template <int Bit>
inline __m512 butterfly(__m512 x) {
    __m512 swapped;
    __mmask16 minus;
    if constexpr (Bit == 0) {
        swapped = _mm512_permute_ps(x, 0xB1);
        minus = 0xAAAA;
    } else if constexpr (Bit == 1) {
        swapped = _mm512_permute_ps(x, 0x4E);
        minus = 0xCCCC;
    } else if constexpr (Bit == 2) {
        swapped = _mm512_shuffle_f32x4(x, x, 0xB1);
        minus = 0xF0F0;
    } else {
        swapped = _mm512_shuffle_f32x4(x, x, 0x4E);
        minus = 0xFF00;
    }
    const __m512 sign = _mm512_mask_blend_ps(minus, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
    return _mm512_fmadd_ps(x, sign, swapped);  // the product is exact: one rounding
}

// The Walsh-Hadamard transform of 64 values, in Sylvester's order, without the factor 1/8.
inline void hadamard(__m512 v[4]) {
    for (int i = 0; i < 4; ++i) {
        v[i] = butterfly<3>(butterfly<2>(butterfly<1>(butterfly<0>(v[i]))));
    }
    const __m512 a = _mm512_add_ps(v[0], v[1]), b = _mm512_sub_ps(v[0], v[1]);
    const __m512 c = _mm512_add_ps(v[2], v[3]), d = _mm512_sub_ps(v[2], v[3]);
    v[0] = _mm512_add_ps(a, c);
    v[1] = _mm512_add_ps(b, d);
    v[2] = _mm512_sub_ps(a, c);
    v[3] = _mm512_sub_ps(b, d);
}

// Converts 64 values to int8, rounded half to even.
inline __m512i to_int8(const float* x, __m512 factor) {
    __m512i v[4];
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), factor));
    }
    const __m512i mixed = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]),
                                             _mm512_packs_epi32(v[2], v[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, mixed);
}

// Row `x` of `size` values (of twice as many with a gate: gate, then up) as int8, 64 values to
// each of the tiles that start at `tiles`, 1024 bytes apart. `space` holds the padded row, `norm`
// the `size` weights of the RMS norm; the other prologues do not read it.
template <Prologue P>
inline RowScale quantize_row(const float* x, const float* norm, int64_t size, float eps,
                             float* space, int8_t* tiles, Fetch& fetch) {
    constexpr int kLines = P >= kSiluGate ? 12 : 5;
    constexpr int kLargerMagnitude = 0b1011;  // of vrangeps: |a| or |b|; NaN only if both are
    const int64_t num_blocks = (size + kBlock - 1) / kBlock;
    __m512 largest = _mm512_setzero_ps();
    // Infinity or NaN among 64 values leaves no sum of them finite, so the first sixteen will show
    // it. As integers, magnitudes order like floats, with infinity and then every NaN at the top.
    __m512i largest_bits = _mm512_setzero_si512();
    __m512 squares[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                         _mm512_setzero_ps()};
    for (int64_t b = 0; b < num_blocks; ++b) {
        const int64_t left = size - b * kBlock;
        const uint64_t mask = left >= kBlock ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
        __m512 v[4];
        for (int i = 0; i < 4; ++i) {
            const auto part = static_cast<__mmask16>(mask >> (16 * i));
            v[i] = load_gated<P>(x, size, b * kBlock + 16 * i, part);
            if constexpr (P == kRmsNorm) {
                squares[i] = _mm512_fmadd_ps(v[i], v[i], squares[i]);
                v[i] = _mm512_mul_ps(v[i], _mm512_maskz_loadu_ps(part, norm + b * kBlock + 16 * i));
            }
        }
        fetch.step<kLines>();
        hadamard(v);
        for (int i = 0; i < 4; ++i) {
            _mm512_storeu_ps(space + b * kBlock + 16 * i, v[i]);
            largest = _mm512_range_ps(largest, v[i], kLargerMagnitude);
        }
        const __m512i bits = _mm512_castps_si512(v[0]);
        largest_bits = _mm512_max_epu32(largest_bits, _mm512_add_epi32(bits, bits));
    }
    const float amax = _mm512_reduce_max_ps(largest);
    const bool is_finite = _mm512_reduce_max_epu32(largest_bits) < 0xff000000u &&
                           amax <= std::numeric_limits<float>::max();
    float factor = 127.0f / amax;
    // If all values are 0, or so small (3e-37) that the factor overflows, the row becomes zeros.
    const bool is_zero = is_finite && !(factor < std::numeric_limits<float>::infinity());
    if (!is_finite || is_zero) factor = 0.0f;

    __m512i sum = _mm512_setzero_si512();
    for (int64_t b = 0; b < num_blocks; ++b) {
        const __m512i q = is_finite ? to_int8(space + b * kBlock, _mm512_set1_ps(factor))
                                    : _mm512_setzero_si512();
        _mm512_store_si512(tiles + b * kTileBytes, q);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), q);
    }

    float scale = amax * (1.0f / (127.0f * 8.0f));  // the transform's 1/8 is taken here
    if constexpr (P == kRmsNorm) {
        // 1 / rms is a factor of the whole row. It is applied to the row's scale, so that the
        // values are read only once.
        const __m512 all = _mm512_add_ps(_mm512_add_ps(squares[0], squares[1]),
                                         _mm512_add_ps(squares[2], squares[3]));
        const float mean = _mm512_reduce_add_ps(all) / static_cast<float>(size);
        scale *= 1.0f / std::sqrt(mean + eps);
    }
    if (is_zero) scale = 0.0f;
    if (!is_finite) scale = std::numeric_limits<float>::quiet_NaN();
    return {scale, 128 * _mm512_reduce_add_epi32(sum)};
}

using QuantizeRow = RowScale (*)(const float*, const float*, int64_t, float, float*, int8_t*,
                                 Fetch&);

inline QuantizeRow quantize_row_for(int32_t prologue) {
    switch (prologue) {
        case kRmsNorm: return quantize_row<kRmsNorm>;
        case kSiluGate: return quantize_row<kSiluGate>;
        case kGeluTanhGate: return quantize_row<kGeluTanhGate>;
        default: return quantize_row<kNone>;
    }
}

}  // namespace chatrpc
