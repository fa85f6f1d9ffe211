// The vectors of simd.h in NEON (ARMv8.2 with the dot product): four registers each.

#pragma once

#include <arm_neon.h>

#include <algorithm>
#include <cstdint>

namespace chatrpc {

struct Floats {
    float32x4_t v[4];
};
struct Ints {
    int32x4_t v[4];
};
struct Bytes {
    int8x16_t v[4];
};

// Calls f(0), ..., f(3) and returns the results as the registers of a vector.
template <class Vector, class Function>
inline Vector each(Function f) {
    return {{f(0), f(1), f(2), f(3)}};
}

// All bits of the lanes of register i whose bits in `mask` are set.
inline uint32x4_t lanes_of(Mask mask, int i) {
    const uint32x4_t bit = {1, 2, 4, 8};
    return vtstq_u32(vdupq_n_u32(static_cast<uint32_t>(mask) >> (4 * i)), bit);
}

inline Floats broadcast(float x) {
    return each<Floats>([&](int) { return vdupq_n_f32(x); });
}
inline Floats load(const float* p) {
    return each<Floats>([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline Floats load(const float* p, Mask mask) {
    if (mask == 0xffff) return load(p);
    float lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = (mask >> i & 1) != 0 ? p[i] : 0.0f;
    return load(lanes);
}
inline void store(float* p, Floats a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
inline void store(float* p, Mask mask, Floats a) {
    if (mask == 0xffff) return store(p, a);
    float lanes[16];
    store(lanes, a);
    for (int i = 0; i < 16; ++i) {
        if ((mask >> i & 1) != 0) p[i] = lanes[i];
    }
}

inline Floats load_bf16(const uint16_t* p) {
    return each<Floats>(
        [&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline Floats load_f16(const uint16_t* p) {
    return each<Floats>(
        [&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}

inline Floats operator+(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline Floats operator-(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline Floats operator*(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline Floats operator/(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline Floats fma(Floats a, Floats b, Floats c) {
    return each<Floats>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline Floats fms(Floats a, Floats b, Floats c) {
    return each<Floats>([&](int i) { return vfmaq_f32(vnegq_f32(c.v[i]), a.v[i], b.v[i]); });
}
inline Floats min(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vminq_f32(a.v[i], b.v[i]); });
}
inline Floats max(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vmaxq_f32(a.v[i], b.v[i]); });
}
inline Floats abs(Floats a) {
    return each<Floats>([&](int i) { return vabsq_f32(a.v[i]); });
}
inline Floats larger_magnitude(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vmaxnmq_f32(vabsq_f32(b.v[i]), a.v[i]); });
}
inline Floats copy_sign(Floats a, Floats sign) {
    const uint32x4_t bit = vdupq_n_u32(0x80000000u);
    return each<Floats>([&](int i) { return vbslq_f32(bit, sign.v[i], a.v[i]); });
}
inline Floats floor(Floats x) {
    return each<Floats>([&](int i) { return vrndmq_f32(x.v[i]); });
}
inline Floats fraction(Floats x) { return x - floor(x); }
inline Floats times_power(Floats a, Floats x) {
    // Two factors, so that neither is denormal.
    const Floats bounded = max(broadcast(-250.0f), x);
    return each<Floats>([&](int i) {
        const int32x4_t exponent = vcvtmq_s32_f32(bounded.v[i]);
        const int32x4_t half = vshrq_n_s32(exponent, 1), rest = vsubq_s32(exponent, half);
        const auto factor = [](int32x4_t n) {
            return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
        };
        return vmulq_f32(vmulq_f32(a.v[i], factor(half)), factor(rest));
    });
}
inline Floats reciprocal(Floats x) { return broadcast(1.0f) / x; }

inline Floats keep(Mask mask, Floats a) {
    if (mask == 0xffff) return a;
    return each<Floats>([&](int i) {
        return vreinterpretq_f32_u32(
            vandq_u32(vreinterpretq_u32_f32(a.v[i]), lanes_of(mask, i)));
    });
}
inline Floats max_where(Mask mask, Floats a, Floats b) {
    const Floats larger = max(a, b);
    if (mask == 0xffff) return larger;
    return each<Floats>(
        [&](int i) { return vbslq_f32(lanes_of(mask, i), larger.v[i], a.v[i]); });
}
inline Mask finite_lanes(Floats a) {
    const float32x4_t infinity = vdupq_n_f32(__builtin_inff());
    const uint32x4_t bit = {1, 2, 4, 8};
    uint32_t mask = 0;
    for (int i = 0; i < 4; ++i) {
        mask |= vaddvq_u32(vandq_u32(vcaltq_f32(a.v[i], infinity), bit)) << (4 * i);
    }
    return static_cast<Mask>(mask);
}
inline Mask lanes_at_least(Floats a, Floats b) {
    const uint32x4_t bit = {1, 2, 4, 8};
    uint32_t mask = 0;
    for (int i = 0; i < 4; ++i) {
        mask |= vaddvq_u32(vandq_u32(vcgeq_f32(a.v[i], b.v[i]), bit)) << (4 * i);
    }
    return static_cast<Mask>(mask);
}
inline float sum(Floats a) {
    const float32x4_t four =
        vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float largest(Floats a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[2]), vmaxq_f32(a.v[1], a.v[3])));
}

template <int Bit>
inline Floats swapped(Floats x) {
    if constexpr (Bit == 0) return each<Floats>([&](int i) { return vrev64q_f32(x.v[i]); });
    if constexpr (Bit == 1) {
        return each<Floats>([&](int i) { return vextq_f32(x.v[i], x.v[i], 2); });
    }
    return {{x.v[Bit == 2 ? 1 : 2], x.v[Bit == 2 ? 0 : 3], x.v[Bit == 2 ? 3 : 0],
             x.v[Bit == 2 ? 2 : 1]}};
}

inline Ints broadcast(int32_t x) {
    return each<Ints>([&](int) { return vdupq_n_s32(x); });
}
inline Ints zero_ints() { return broadcast(int32_t{0}); }
inline Ints operator+(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
inline Ints operator-(Ints a, Ints b) {
    return each<Ints>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
}
inline Ints max_unsigned(Ints a, Ints b) {
    return each<Ints>([&](int i) {
        return vreinterpretq_s32_u32(
            vmaxq_u32(vreinterpretq_u32_s32(a.v[i]), vreinterpretq_u32_s32(b.v[i])));
    });
}
inline int32_t sum(Ints a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
inline uint32_t largest_unsigned(Ints a) {
    uint32_t result = 0;
    for (const int32x4_t v : a.v) result = std::max(result, vmaxvq_u32(vreinterpretq_u32_s32(v)));
    return result;
}
inline Ints bits_of(Floats a) {
    return each<Ints>([&](int i) { return vreinterpretq_s32_f32(a.v[i]); });
}
inline Floats to_floats(Ints a) {
    return each<Floats>([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}
inline Ints round_to_ints(Floats a) {
    return each<Ints>([&](int i) { return vcvtnq_s32_f32(a.v[i]); });
}

inline void store_bf16(uint16_t* p, Floats a) {
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t bits = vreinterpretq_u32_f32(a.v[i]);
        const uint32x4_t high = vshrq_n_u32(bits, 16);
        const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
        const uint32x4_t bias = vaddq_u32(odd, vdupq_n_u32(0x7fff));
        const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(bits, bias), 16);
        const uint32x4_t quiet = vorrq_u32(high, vdupq_n_u32(0x40));
        const uint32x4_t is_number = vceqq_f32(a.v[i], a.v[i]);
        vst1_u16(p + 4 * i, vmovn_u32(vbslq_u32(is_number, rounded, quiet)));
    }
}

inline void store_bf16_in_pairs(uint16_t* pairs, int odd, Floats a) {
    uint16_t rounded[16];
    store_bf16(rounded, a);
    for (int i = 0; i < 16; ++i) pairs[2 * i + odd] = rounded[i];
}

inline void unpack_pairs(const uint16_t* pairs, float* first, float* second) {
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t both = vreinterpretq_u32_u16(vld1q_u16(pairs + 8 * i));
        vst1q_f32(first + 4 * i, vreinterpretq_f32_u32(vshlq_n_u32(both, 16)));
        vst1q_f32(second + 4 * i,
                  vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000u))));
    }
}

inline void unpack_quads(const int8_t* quads, Floats (&out)[4]) {
    for (int i = 0; i < 4; ++i) {
        const int32x4_t left = vdupq_n_s32(24 - 8 * i);
        out[i] = each<Floats>([&](int part) {
            const int32x4_t words = vreinterpretq_s32_s8(vld1q_s8(quads + 16 * part));
            return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(words, left), 24));
        });
    }
}

inline Bytes to_bytes(Ints a, Ints b, Ints c, Ints d) {
    const auto pack = [](Ints x) {
        const int16x8_t low = vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1]));
        const int16x8_t high = vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3]));
        return vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
    };
    return {{pack(a), pack(b), pack(c), pack(d)}};
}
inline Bytes zero_bytes() {
    return each<Bytes>([](int) { return vdupq_n_s8(0); });
}
inline void store(int8_t* p, Bytes a) {
    for (int i = 0; i < 4; ++i) vst1q_s8(p + 16 * i, a.v[i]);
}
inline Ints add_bytes(Ints to, Bytes a) {
    return each<Ints>([&](int i) { return vdotq_s32(to.v[i], a.v[i], vdupq_n_s8(1)); });
}


inline Bytes load_bytes(const uint8_t* p) {
    return each<Bytes>([&](int i) { return vreinterpretq_s8_u8(vld1q_u8(p + 16 * i)); });
}
inline Bytes each_four_times(const uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint8x16_t first = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    return each<Bytes>([&](int i) {
        const uint8x16_t order = vaddq_u8(first, vdupq_n_u8(static_cast<uint8_t>(4 * i)));
        return vreinterpretq_s8_u8(vqtbl1q_u8(bytes, order));
    });
}
inline Bytes low_bytes(Bytes a) {
    return each<Bytes>([&](int i) {
        return vreinterpretq_s8_s16(vandq_s16(vreinterpretq_s16_s8(a.v[i]), vdupq_n_s16(0xff)));
    });
}
inline Bytes lower_nibbles(Bytes a) {
    return each<Bytes>([&](int i) { return vandq_s8(a.v[i], vdupq_n_s8(15)); });
}
inline Bytes upper_nibbles(Bytes a) {
    return each<Bytes>([&](int i) {
        return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(a.v[i]), 4));
    });
}
inline Bytes add(Bytes a, Bytes b) {
    return each<Bytes>([&](int i) { return vaddq_s8(a.v[i], b.v[i]); });
}
inline Bytes multiply_words(Bytes a, Bytes b) {
    return each<Bytes>([&](int i) {
        return vreinterpretq_s8_s16(
            vmulq_s16(vreinterpretq_s16_s8(a.v[i]), vreinterpretq_s16_s8(b.v[i])));
    });
}

}  // namespace chatrpc
