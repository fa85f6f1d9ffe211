// Converts a row of float activations to int8: prologue, block Hadamard transform, quantization.
//
// Everything here is a function of one row, and does not depend on the number of rows, so that a
// row's bits are the same in any batch. Tails are masked vectors: a scalar remainder would round
// differently from the vectors before it.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "simd.h"

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
        for (int i = 0; i < Lines; ++i) __builtin_prefetch(next_ + 64 * i, 0, 2);
        next_ += 64 * Lines;
    }

  private:
    const uint8_t* next_;
    const uint8_t* end_;
};

// 1 / (1 + e^-x), with an error of 2e-7. NaN stays NaN.
inline Floats sigmoid(Floats x) {
    // e^-x is 2^t. Where t is bounded the result is 1e-35.
    const Floats t = min(broadcast(116.0f), x * broadcast(-1.44269504f));
    const Floats r = fraction(t);
    Floats p = broadcast(1.8775765784e-3f);  // 2^r for r in [0, 1], to 9e-8
    p = fma(p, r, broadcast(8.9893406257e-3f));
    p = fma(p, r, broadcast(5.5826317519e-2f));
    p = fma(p, r, broadcast(2.4015361071e-1f));
    p = fma(p, r, broadcast(6.9315308332e-1f));
    p = fma(p, r, broadcast(9.9999994040e-1f));
    return reciprocal(times_power(p, t) + broadcast(1.0f));
}

template <Prologue P>
inline Floats load_gated(const float* x, int64_t size, int64_t k, Mask mask) {
    const Floats value = load(x + k, mask);
    if constexpr (P == kSiluGate) {
        const Floats up = load(x + size + k, mask);
        return value * sigmoid(value) * up;
    } else if constexpr (P == kGeluTanhGate) {
        // 0.5 (1 + tanh(u)) is sigmoid(2u), with u = sqrt(2/pi) (x + 0.044715 x^3).
        const Floats up = load(x + size + k, mask);
        const Floats cubic = fma(value * value, broadcast(0.044715f), broadcast(1.0f));
        const Floats u = value * cubic * broadcast(1.5957691216f);
        return value * sigmoid(u) * up;
    } else {
        return value;
    }
}

// Replaces lanes i and i ^ 2^bit by their sum (in the lane without the bit) and their difference.
template <int Bit>
inline Floats butterfly(Floats x) {
    alignas(64) static constexpr float kSigns[4][16] = {
        {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
        {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
        {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
        {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1},
    };
    return fma(x, load(kSigns[Bit]), swapped<Bit>(x));  // the product is exact: one rounding
}

// The Walsh-Hadamard transform of 16 values, in Sylvester's order, without the factor 1/4.
inline Floats hadamard(Floats x) { return butterfly<3>(butterfly<2>(butterfly<1>(butterfly<0>(x)))); }

// The Walsh-Hadamard transform of 64 values, in Sylvester's order, without the factor 1/8.
inline void hadamard(Floats v[4]) {
    for (int i = 0; i < 4; ++i) {
        v[i] = hadamard(v[i]);
    }
    const Floats a = v[0] + v[1], b = v[0] - v[1];
    const Floats c = v[2] + v[3], d = v[2] - v[3];
    v[0] = a + c;
    v[1] = b + d;
    v[2] = a - c;
    v[3] = b - d;
}

// Converts 64 values to int8, rounded half to even.
inline Bytes to_int8(const float* x, Floats factor) {
    Ints v[4];
    for (int i = 0; i < 4; ++i) v[i] = round_to_ints(load(x + 16 * i) * factor);
    return to_bytes(v[0], v[1], v[2], v[3]);
}

// Row `x` of `size` values (of twice as many with a gate: gate, then up) as int8, 64 values to
// each of the tiles that start at `tiles`, 1024 bytes apart. `space` holds the padded row, `norm`
// the `size` weights of the RMS norm; the other prologues do not read it.
template <Prologue P>
inline RowScale quantize_row(const float* x, const float* norm, int64_t size, float eps,
                             float* space, int8_t* tiles, Fetch& fetch) {
    constexpr int kLines = P >= kSiluGate ? 12 : 5;
    const int64_t num_blocks = (size + kBlock - 1) / kBlock;
    Floats greatest = zero_floats();
    // Infinity or NaN among 64 values leaves no sum of them finite, so the first sixteen will show
    // it. As integers, magnitudes order like floats, with infinity and then every NaN at the top.
    Ints greatest_bits = zero_ints();
    Floats squares[4] = {zero_floats(), zero_floats(), zero_floats(), zero_floats()};
    for (int64_t b = 0; b < num_blocks; ++b) {
        const int64_t left = size - b * kBlock;
        const uint64_t mask = left >= kBlock ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
        Floats v[4];
        for (int i = 0; i < 4; ++i) {
            const auto part = static_cast<Mask>(mask >> (16 * i));
            v[i] = load_gated<P>(x, size, b * kBlock + 16 * i, part);
            if constexpr (P == kRmsNorm) {
                squares[i] = fma(v[i], v[i], squares[i]);
                v[i] = v[i] * load(norm + b * kBlock + 16 * i, part);
            }
        }
        fetch.step<kLines>();
        hadamard(v);
        for (int i = 0; i < 4; ++i) {
            store(space + b * kBlock + 16 * i, v[i]);
            greatest = larger_magnitude(greatest, v[i]);
        }
        const Ints bits = bits_of(v[0]);
        greatest_bits = max_unsigned(greatest_bits, bits + bits);
    }
    const float amax = largest(greatest);
    const bool is_finite = largest_unsigned(greatest_bits) < 0xff000000u &&
                           amax <= std::numeric_limits<float>::max();
    float factor = 127.0f / amax;
    // If all values are 0, or so small (3e-37) that the factor overflows, the row becomes zeros.
    const bool is_zero = is_finite && !(factor < std::numeric_limits<float>::infinity());
    if (!is_finite || is_zero) factor = 0.0f;

    Ints sums = zero_ints();
    for (int64_t b = 0; b < num_blocks; ++b) {
        const Bytes q = is_finite ? to_int8(space + b * kBlock, broadcast(factor)) : zero_bytes();
        store(tiles + b * kTileBytes, q);
        sums = add_bytes(sums, q);
    }

    float scale = amax * (1.0f / (127.0f * 8.0f));  // the transform's 1/8 is taken here
    if constexpr (P == kRmsNorm) {
        // 1 / rms is a factor of the whole row. It is applied to the row's scale, so that the
        // values are read only once.
        const Floats all = (squares[0] + squares[1]) + (squares[2] + squares[3]);
        const float mean = sum(all) / static_cast<float>(size);
        scale *= 1.0f / std::sqrt(mean + eps);
    }
    if (is_zero) scale = 0.0f;
    if (!is_finite) scale = std::numeric_limits<float>::quiet_NaN();
    return {scale, 128 * sum(sums)};
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
