// Converts a row of float activations to int8 with a scale for each group of 128 values, without a
// rotation; see quantize.h.

#pragma once

#include "int4.h"
#include "quantize.h"

namespace chatrpc {

// As quantize_row. The scale of group g is `scales[g * stride]`.
template <Prologue P>
inline void quantize_row_in_groups(const float* x, const float* norm, int64_t size, float eps,
                                   float* space, int8_t* tiles, Fetch& fetch, RowScale* scales,
                                   int64_t stride) {
    constexpr int kLines = P >= kSiluGate ? 12 : 5;
    constexpr int64_t kGroup = kGroupBlocks * kBlock;
    const int64_t num_blocks = (size + kBlock - 1) / kBlock;
    Ints greatest_bits = zero_ints();  // shows what is not finite: see quantize_row
    Floats squares[4] = {zero_floats(), zero_floats(), zero_floats(), zero_floats()};
    Floats greatest = zero_floats();
    for (int64_t b = 0; b < num_blocks; ++b) {
        const int64_t left = size - b * kBlock;
        const uint64_t mask = left >= kBlock ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
        if (b % kGroupBlocks == 0) greatest = zero_floats();
        for (int i = 0; i < 4; ++i) {
            const auto part = static_cast<Mask>(mask >> (16 * i));
            Floats v = load_gated<P>(x, size, b * kBlock + 16 * i, part);
            if constexpr (P == kRmsNorm) {
                squares[i] = fma(v, v, squares[i]);
                v = v * load(norm + b * kBlock + 16 * i, part);
            }
            store(space + b * kBlock + 16 * i, v);
            greatest = larger_magnitude(greatest, v);
            const Ints bits = bits_of(v);
            greatest_bits = max_unsigned(greatest_bits, bits + bits);
        }
        fetch.step<kLines>();
        scales[b / kGroupBlocks * stride].scale = largest(greatest);
    }
    const bool is_finite = largest_unsigned(greatest_bits) < 0xff000000u;
    float of_row = 1.0f;
    if constexpr (P == kRmsNorm) {
        const Floats all = (squares[0] + squares[1]) + (squares[2] + squares[3]);
        const float mean = sum(all) / static_cast<float>(size);
        of_row = 1.0f / std::sqrt(mean + eps);
    }
    for (int64_t g = 0; g * kGroup < num_blocks * kBlock; ++g) {
        RowScale& scale = scales[g * stride];
        const float amax = scale.scale;
        const float factor = 127.0f / amax;
        // Values that are all 0, or so small that the factor overflows, become zeros.
        const bool is_zero = !(factor < std::numeric_limits<float>::infinity());
        Ints sums = zero_ints();
        const int64_t end = std::min((g + 1) * kGroupBlocks, num_blocks);
        for (int64_t b = g * kGroupBlocks; b < end; ++b) {
            const Bytes q = !is_finite || is_zero
                                ? zero_bytes()
                                : to_int8(space + b * kBlock, broadcast(factor));
            store(tiles + b * kTileBytes, q);
            sums = add_bytes(sums, q);
        }
        scale.scale = is_zero ? 0.0f : amax * (1.0f / 127.0f) * of_row;
        if (!is_finite) scale.scale = std::numeric_limits<float>::quiet_NaN();
        scale.compensation = 128 * sum(sums);
    }
}

using QuantizeRowInGroups = void (*)(const float*, const float*, int64_t, float, float*, int8_t*,
                                     Fetch&, RowScale*, int64_t);

inline QuantizeRowInGroups quantize_row_in_groups_for(int32_t prologue) {
    switch (prologue) {
        case kRmsNorm: return quantize_row_in_groups<kRmsNorm>;
        case kSiluGate: return quantize_row_in_groups<kSiluGate>;
        case kGeluTanhGate: return quantize_row_in_groups<kGeluTanhGate>;
        default: return quantize_row_in_groups<kNone>;
    }
}

}  // namespace chatrpc
