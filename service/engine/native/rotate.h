// Reads float weights of several types, and rotates them as quantize.h does activations.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "quantize.h"

namespace chatrpc {

struct Float32 {
    using Value = float;
    static Floats load(const Value* x) { return chatrpc::load(x); }
};

struct BFloat16 {
    using Value = uint16_t;
    static Floats load(const Value* x) { return load_bf16(x); }
};

struct Float16 {
    using Value = uint16_t;
    static Floats load(const Value* x) { return load_f16(x); }
};

// Writes the transform of a row's blocks, without its factor 1/8, to `rotated`. Returns the largest
// magnitude; NaN if a weight is not finite.
template <class Type>
float rotate(const typename Type::Value* row, int64_t size, float* rotated) {
    Floats greatest = zero_floats();
    Ints greatest_bits = zero_ints();  // shows what is not finite: see quantize_row
    for (int64_t k = 0; k < size; k += kBlock) {
        typename Type::Value last[kBlock] = {};
        const typename Type::Value* block = row + k;
        if (size - k < kBlock) {
            std::memcpy(last, block, (size - k) * sizeof *block);
            block = last;
        }
        Floats v[4];
        for (int i = 0; i < 4; ++i) v[i] = Type::load(block + 16 * i);
        hadamard(v);
        for (int i = 0; i < 4; ++i) {
            store(rotated + k + 16 * i, v[i]);
            greatest = max(greatest, abs(v[i]));
        }
        const Ints bits = bits_of(v[0]);
        greatest_bits = max_unsigned(greatest_bits, bits + bits);
    }
    const float amax = largest(greatest);
    const bool is_finite = largest_unsigned(greatest_bits) < 0xff000000u &&
                           amax <= std::numeric_limits<float>::max();
    return is_finite ? amax : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace chatrpc
