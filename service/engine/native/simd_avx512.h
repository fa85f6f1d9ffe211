// The vectors of simd.h in AVX-512: one register each.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace chatrpc {

struct Floats {
    __m512 v;
};
struct Ints {
    __m512i v;
};
struct Bytes {
    __m512i v;
};

inline Floats broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Floats load(const float* p, Mask mask) { return {_mm512_maskz_loadu_ps(mask, p)}; }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
inline void store(float* p, Mask mask, Floats a) { _mm512_mask_storeu_ps(p, mask, a.v); }

inline Floats load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline Floats load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats fms(Floats a, Floats b, Floats c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats abs(Floats a) { return {_mm512_abs_ps(a.v)}; }
inline Floats larger_magnitude(Floats a, Floats b) {
    return {_mm512_range_ps(a.v, b.v, 0b1011)};  // of vrangeps: |a| or |b|; NaN only if both are
}
inline Floats copy_sign(Floats a, Floats sign) {
    const __m512 bit = _mm512_set1_ps(-0.0f);
    return {_mm512_or_ps(_mm512_andnot_ps(bit, a.v), _mm512_and_ps(sign.v, bit))};
}
inline Floats fraction(Floats x) {
    return {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
inline Floats times_power(Floats a, Floats x) { return {_mm512_scalef_ps(a.v, x.v)}; }
inline Floats reciprocal(Floats x) {
    // A reciprocal to 14 bits and one Newton step: full division costs three times as much.
    const __m512 estimate = _mm512_rcp14_ps(x.v);
    const __m512 error = _mm512_fnmadd_ps(x.v, estimate, _mm512_set1_ps(1.0f));
    return {_mm512_fmadd_ps(estimate, error, estimate)};
}

inline Floats keep(Mask mask, Floats a) { return {_mm512_maskz_mov_ps(mask, a.v)}; }
inline Floats max_where(Mask mask, Floats a, Floats b) {
    return {_mm512_mask_max_ps(a.v, mask, a.v, b.v)};
}
inline Mask finite_lanes(Floats a) {
    const __m512 infinity = _mm512_set1_ps(__builtin_inff());
    return _mm512_cmp_ps_mask(_mm512_abs_ps(a.v), infinity, _CMP_LT_OQ);
}
inline Mask lanes_at_least(Floats a, Floats b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ);
}
inline float sum(Floats a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(Floats a) { return _mm512_reduce_max_ps(a.v); }

template <int Bit>
inline Floats swapped(Floats x) {
    if constexpr (Bit == 0) return {_mm512_permute_ps(x.v, 0xB1)};
    if constexpr (Bit == 1) return {_mm512_permute_ps(x.v, 0x4E)};
    if constexpr (Bit == 2) return {_mm512_shuffle_f32x4(x.v, x.v, 0xB1)};
    if constexpr (Bit == 3) return {_mm512_shuffle_f32x4(x.v, x.v, 0x4E)};
}

inline Ints zero_ints() { return {_mm512_setzero_si512()}; }
inline Ints broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Ints max_unsigned(Ints a, Ints b) { return {_mm512_max_epu32(a.v, b.v)}; }
inline int32_t sum(Ints a) { return _mm512_reduce_add_epi32(a.v); }
inline uint32_t largest_unsigned(Ints a) { return _mm512_reduce_max_epu32(a.v); }
inline Ints bits_of(Floats a) { return {_mm512_castps_si512(a.v)}; }
inline Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Ints round_to_ints(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }

inline __m256i to_bf16(Floats a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}
inline void store_bf16(uint16_t* p, Floats a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(a));
}
inline void store_bf16_in_pairs(uint16_t* pairs, int odd, Floats a) {
    const __m512i rounded = _mm512_cvtepu16_epi32(to_bf16(a));
    _mm512_mask_storeu_epi16(pairs, odd ? 0xaaaaaaaau : 0x55555555u,
                             _mm512_slli_epi32(rounded, static_cast<unsigned>(16 * odd)));
}
inline void unpack_pairs(const uint16_t* pairs, float* first, float* second) {
    const __m512i both = _mm512_loadu_si512(pairs);
    const __m512i high = _mm512_and_si512(both, _mm512_set1_epi32(-0x10000));
    _mm512_storeu_si512(first, _mm512_slli_epi32(both, 16));
    _mm512_storeu_si512(second, high);
}

inline void unpack_quads(const int8_t* quads, Floats (&out)[4]) {
    const __m512i all = _mm512_loadu_si512(quads);
    out[0] = {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(all, 24), 24))};
    out[1] = {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(all, 16), 24))};
    out[2] = {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(all, 8), 24))};
    out[3] = {_mm512_cvtepi32_ps(_mm512_srai_epi32(all, 24))};
}

inline Bytes to_bytes(Ints a, Ints b, Ints c, Ints d) {
    const __m512i mixed =
        _mm512_packs_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return {_mm512_permutexvar_epi32(order, mixed)};
}
inline Bytes zero_bytes() { return {_mm512_setzero_si512()}; }
inline void store(int8_t* p, Bytes a) { _mm512_storeu_si512(p, a.v); }
inline Ints add_bytes(Ints to, Bytes a) {
    return {_mm512_dpbusd_epi32(to.v, _mm512_set1_epi8(1), a.v)};
}

}  // namespace chatrpc
