// Vectors of 16 lanes, on each instruction set that has kernels.
//
// `Floats` are 16 floats, `Ints` 16 integers of 32 bits, `Bytes` 64 of 8 bits. A file for each
// instruction set has the types and the same functions, which differ in the number of registers
// that they take. So the kernels are written once, and their sums have one order on every CPU; only
// the integer products have code for each instruction set (product.h).
//
//     load, store              unaligned; with a mask, memory at other lanes is not accessed
//     fma(a, b, c)             a * b + c, rounded once; fms: a * b - c
//     min(a, b), max(a, b)     b if either is NaN (x86), or NaN (ARM): pass the bound as `a`
//     larger_magnitude(a, b)   max(|a|, |b|); a, which must not be NaN, if b is NaN
//     fraction(x)              x - floor(x)
//     times_power(a, x)        a * 2^floor(x) for x < 120; denormal results and 0 are rounded
//     reciprocal(x)            1 / x, with a relative error of 1e-7
//     keep(mask, a)            0 in the other lanes
//     max_where(mask, a, b)    a in the other lanes
//     lanes_at_least(a, b)     the lanes with a >= b
//     swapped<Bit>(a)          lane i gets lane i ^ 2^Bit
//     max_unsigned, largest_unsigned   lanes as unsigned integers
//     round_to_ints            half to even
//     store_bf16(p, a)         16 bfloat16, half to even; NaN stays NaN
//     store_bf16_in_pairs      the same to each first (odd = 0) or second (1) of 16 pairs
//     unpack_pairs(p, a, b)    16 pairs of bfloat16 to floats: the first of each pair, the second
//     unpack_quads(p, ...)     16 fours of int8 to floats: the first of each four, the second, ...
//     to_bytes(a, b, c, d)     64 integers to int8, with saturation
//     add_bytes(to, a)         adds each four bytes to a lane
//
// Only in AVX2 and NEON, for int4.h:
//
//     each_four_times(p)       byte i at 4 i to 4 i + 3
//     low_bytes(a)             0 in every second byte
//     multiply_words(a, b)     as 32 integers of 16 bits

#pragma once

#include <cstdint>

namespace chatrpc {

using Mask = uint16_t;  // lane 0 is the lowest bit

}  // namespace chatrpc

// CHATRPC_USE_AVX2 chooses the narrower kernels on a CPU that has AVX-512.
#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && \
    defined(__AVX512DQ__) && !defined(CHATRPC_USE_AVX2)
#define CHATRPC_AVX512
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define CHATRPC_AVX2
#include "simd_avx2.h"
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#define CHATRPC_NEON
#include "simd_neon.h"
#else
#error "there are no kernels for this CPU: they need AVX2 with FMA and F16C, or NEON with sdot"
#endif

namespace chatrpc {

inline Floats zero_floats() { return broadcast(0.0f); }

}  // namespace chatrpc
