// The vectors of simd.h in AVX2 with FMA and F16C (x86-64-v3): two registers each.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace chatrpc {

struct Floats {
    __m256 low, high;
};
struct Ints {
    __m256i low, high;
};
struct Bytes {
    __m256i low, high;
};

// All bits of the lanes whose bits in `mask` are set.
inline __m256i lanes_of(uint32_t mask) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bit), bit);
}
inline __m256i load_256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline void store_256(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }

inline Floats broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Floats load(const float* p, Mask mask) {
    if (mask == 0xffff) return load(p);
    return {_mm256_maskload_ps(p, lanes_of(mask)), _mm256_maskload_ps(p + 8, lanes_of(mask >> 8))};
}
inline void store(float* p, Floats a) {
    _mm256_storeu_ps(p, a.low);
    _mm256_storeu_ps(p + 8, a.high);
}
inline void store(float* p, Mask mask, Floats a) {
    if (mask == 0xffff) return store(p, a);
    _mm256_maskstore_ps(p, lanes_of(mask), a.low);
    _mm256_maskstore_ps(p + 8, lanes_of(mask >> 8), a.high);
}

inline Floats load_bf16(const uint16_t* p) {
    const auto widen = [](const uint16_t* half) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    };
    return {widen(p), widen(p + 8)};
}
inline Floats load_f16(const uint16_t* p) {
    const auto widen = [](const uint16_t* half) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
    };
    return {widen(p), widen(p + 8)};
}

inline Floats operator+(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Floats operator-(Floats a, Floats b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Floats operator*(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Floats operator/(Floats a, Floats b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats fms(Floats a, Floats b, Floats c) {
    return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline Floats min(Floats a, Floats b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Floats max(Floats a, Floats b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Floats abs(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline Floats larger_magnitude(Floats a, Floats b) { return max(abs(b), a); }
inline Floats copy_sign(Floats a, Floats sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    const Floats magnitude = abs(a);
    return {_mm256_or_ps(magnitude.low, _mm256_and_ps(sign.low, bit)),
            _mm256_or_ps(magnitude.high, _mm256_and_ps(sign.high, bit))};
}
inline Floats floor(Floats x) { return {_mm256_floor_ps(x.low), _mm256_floor_ps(x.high)}; }
inline Floats fraction(Floats x) { return x - floor(x); }
inline Floats times_power(Floats a, Floats x) {
    // Two factors, so that neither is denormal. min and max give the second operand for NaN.
    const Floats whole = floor(max(broadcast(-250.0f), x));
    const auto scale = [](__m256 value, __m256 power) {
        const __m256i exponent = _mm256_cvtps_epi32(power);
        const __m256i half = _mm256_srai_epi32(exponent, 1);
        const __m256i rest = _mm256_sub_epi32(exponent, half), bias = _mm256_set1_epi32(127);
        const auto factor = [&](__m256i n) {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, bias), 23));
        };
        return _mm256_mul_ps(_mm256_mul_ps(value, factor(half)), factor(rest));
    };
    return {scale(a.low, whole.low), scale(a.high, whole.high)};
}
inline Floats reciprocal(Floats x) { return broadcast(1.0f) / x; }

inline Floats keep(Mask mask, Floats a) {
    if (mask == 0xffff) return a;
    return {_mm256_and_ps(a.low, _mm256_castsi256_ps(lanes_of(mask))),
            _mm256_and_ps(a.high, _mm256_castsi256_ps(lanes_of(mask >> 8)))};
}
inline Floats max_where(Mask mask, Floats a, Floats b) {
    const Floats larger = max(a, b);
    if (mask == 0xffff) return larger;
    return {_mm256_blendv_ps(a.low, larger.low, _mm256_castsi256_ps(lanes_of(mask))),
            _mm256_blendv_ps(a.high, larger.high, _mm256_castsi256_ps(lanes_of(mask >> 8)))};
}
inline Mask finite_lanes(Floats a) {
    const __m256 infinity = _mm256_set1_ps(__builtin_inff());
    const Floats magnitude = abs(a);
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(magnitude.low, infinity, _CMP_LT_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(magnitude.high, infinity, _CMP_LT_OQ));
    return static_cast<Mask>(low | high << 8);
}
inline Mask lanes_at_least(Floats a, Floats b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ));
    return static_cast<Mask>(low | high << 8);
}
inline float sum(Floats a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four =
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Floats a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four =
        _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

template <int Bit>
inline Floats swapped(Floats x) {
    if constexpr (Bit == 0) return {_mm256_permute_ps(x.low, 0xB1), _mm256_permute_ps(x.high, 0xB1)};
    if constexpr (Bit == 1) return {_mm256_permute_ps(x.low, 0x4E), _mm256_permute_ps(x.high, 0x4E)};
    if constexpr (Bit == 2) {
        return {_mm256_permute2f128_ps(x.low, x.low, 1), _mm256_permute2f128_ps(x.high, x.high, 1)};
    }
    if constexpr (Bit == 3) return {x.high, x.low};
}

inline Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints broadcast(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints operator+(Ints a, Ints b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
inline Ints operator-(Ints a, Ints b) {
    return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
inline Ints max_unsigned(Ints a, Ints b) {
    return {_mm256_max_epu32(a.low, b.low), _mm256_max_epu32(a.high, b.high)};
}
inline void store(int32_t* p, Ints a) {
    store_256(p, a.low);
    store_256(p + 8, a.high);
}
inline int32_t sum(Ints a) {
    alignas(32) int32_t lanes[8];
    store_256(lanes, _mm256_add_epi32(a.low, a.high));
    int32_t total = 0;
    for (const int32_t lane : lanes) total += lane;
    return total;
}
inline uint32_t largest_unsigned(Ints a) {
    alignas(32) uint32_t lanes[8];
    store_256(lanes, _mm256_max_epu32(a.low, a.high));
    return *std::max_element(lanes, lanes + 8);
}
inline Ints bits_of(Floats a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
inline Floats to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline Ints round_to_ints(Floats a) {
    return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)};
}

inline void store_bf16(uint16_t* p, Floats a) {
    const auto round = [](__m256 x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i high = _mm256_srli_epi32(bits, 16);
        const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        return _mm256_blendv_epi8(rounded, quiet, nan);
    };
    const __m256i mixed = _mm256_packus_epi32(round(a.low), round(a.high));
    store_256(p, _mm256_permute4x64_epi64(mixed, 0xD8));
}

inline void store_bf16_in_pairs(uint16_t* pairs, int odd, Floats a) {
    uint16_t rounded[16];
    store_bf16(rounded, a);
    for (int i = 0; i < 16; ++i) pairs[2 * i + odd] = rounded[i];
}

inline void unpack_pairs(const uint16_t* pairs, float* first, float* second) {
    for (int i = 0; i < 2; ++i) {
        const __m256i both = load_256(pairs + 16 * i);
        store_256(first + 8 * i, _mm256_slli_epi32(both, 16));
        store_256(second + 8 * i, _mm256_and_si256(both, _mm256_set1_epi32(-0x10000)));
    }
}

inline void unpack_quads(const int8_t* quads, Floats (&out)[4]) {
    const __m256i low = load_256(quads), high = load_256(quads + 32);
    for (int i = 0; i < 4; ++i) {
        const auto byte = [i](__m256i words) {
            return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 24 - 8 * i), 24));
        };
        out[i] = {byte(low), byte(high)};
    }
}

inline Bytes to_bytes(Ints a, Ints b, Ints c, Ints d) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const auto pack = [&](Ints first, Ints second) {
        const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(first.low, first.high),
                                                 _mm256_packs_epi32(second.low, second.high));
        return _mm256_permutevar8x32_epi32(mixed, order);
    };
    return {pack(a, b), pack(c, d)};
}
inline Bytes zero_bytes() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline void store(int8_t* p, Bytes a) {
    store_256(p, a.low);
    store_256(p + 32, a.high);
}
inline Ints add_bytes(Ints to, Bytes a) {
    const auto sums = [](__m256i bytes) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    };
    return {_mm256_add_epi32(to.low, sums(a.low)), _mm256_add_epi32(to.high, sums(a.high))};
}


inline Bytes load_bytes(const uint8_t* p) { return {load_256(p), load_256(p + 32)}; }
inline Bytes each_four_times(const uint8_t* p) {
    const auto spread = [](const uint8_t* eight) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(eight));
        return _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(0x01010101));
    };
    return {spread(p), spread(p + 8)};
}
inline Bytes low_bytes(Bytes a) {
    const __m256i mask = _mm256_set1_epi16(0xff);
    return {_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)};
}
inline Bytes lower_nibbles(Bytes a) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask)};
}
inline Bytes upper_nibbles(Bytes a) {
    return lower_nibbles({_mm256_srli_epi16(a.low, 4), _mm256_srli_epi16(a.high, 4)});
}
inline Bytes add(Bytes a, Bytes b) {
    return {_mm256_add_epi8(a.low, b.low), _mm256_add_epi8(a.high, b.high)};
}
inline Bytes multiply_words(Bytes a, Bytes b) {
    return {_mm256_mullo_epi16(a.low, b.low), _mm256_mullo_epi16(a.high, b.high)};
}

}  // namespace chatrpc
