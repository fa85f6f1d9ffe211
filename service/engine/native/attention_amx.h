// The products of attention on AMX tiles: bfloat16 operands, float32 sums. A row of a product
// depends only on that row of its left operand, so neighbours in a tile change no bit.
//
// Tiles 0-3 are sums, 4 and 5 left operands (queries or weights), 6 and 7 right ones. Right
// operands are read directly from the KV cache (attention.py has the layout), without the L1 cache:
// 64 KB of keys and values would evict the scores from it, which costs a third of the speed.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include "attention_bf16.h"

namespace chatrpc::attention {

// Request the tiles from the operating system, once per process.
inline bool has_amx() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return granted;
}

// The intrinsics do not declare to the compiler that they read tiles from memory and write to it.
inline void memory_fence() { __asm__ volatile("" ::: "memory"); }

// `depth` is the length of the products' sums: dimensions of a key, or tokens of a value step.
inline void configure_tiles(int depth) {
    struct alignas(64) {
        uint8_t palette = 1;
        uint8_t start_row = 0;
        uint8_t reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 0, 0, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 0, 0};
    } config;
    config.row_bytes[4] = config.row_bytes[5] = static_cast<uint16_t>(2 * depth);
    config.rows[6] = config.rows[7] = static_cast<uint8_t>(depth / 2);
    memory_fence();
    _tile_loadconfig(&config);
}

constexpr int kKeyDepth = 32;

// The index at which the k-th 32 dimensions of a head start. The last 32 may overlap those before.
// Where they overlap, the query is 0.
inline int key_offset(int k, int dim) { return std::min(k * kKeyDepth, dim - kKeyDepth); }

inline int query_stride(int dim) { return (dim + kKeyDepth - 1) / kKeyDepth * kKeyDepth; }

// Writes a query as the left operand of scores_amx: [query_stride(dim)].
inline void put_query_amx(const float* query, int dim, uint16_t* out) {
    const int stride = query_stride(dim);
    std::fill(out + stride - kKeyDepth, out + stride, 0);
    for (int d = 0; d < dim; d += kGroup) {
        const int shift = d + kGroup == dim ? stride - dim : 0;
        const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(query + d));
        std::memcpy(out + d + shift, &rounded, sizeof rounded);
    }
}

// Scores of 16 or 32 rows against the groups [g0, g1): keys [dim / 2][16][2].
template <bool kTwo>
void scores_amx(const uint16_t* q, const uint16_t* const* keys, int g0, int g1, int dim,
                float* scores) {
    const int stride = query_stride(dim);
    constexpr int kRowBytes = kSegment * sizeof(float);
    memory_fence();
    for (int g = g0; g < g1; g += 2) {
        const bool pair = g + 1 < g1;
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (kTwo) {
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int k = 0; k * kKeyDepth < dim; ++k) {
            const int lines = key_offset(k, dim) * kGroup;
            _tile_loadd(4, q + k * kKeyDepth, stride * 2);
            _tile_stream_loadd(6, keys[g] + lines, 64);
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (kTwo) {
                _tile_loadd(5, q + 16 * stride + k * kKeyDepth, stride * 2);
                _tile_dpbf16ps(2, 5, 6);
            }
            if (pair) {
                _tile_stream_loadd(7, keys[g + 1] + lines, 64);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (kTwo) _tile_dpbf16ps(3, 5, 7);
            }
        }
        float* out = scores + g * kGroup;
        _tile_stored(0, out, kRowBytes);
        if (pair) _tile_stored(1, out + kGroup, kRowBytes);
        if constexpr (kTwo) {
            _tile_stored(2, out + 16 * kSegment, kRowBytes);
            if (pair) _tile_stored(3, out + 16 * kSegment + kGroup, kRowBytes);
        }
    }
    memory_fence();
}

// The weighted sum of the value steps [s0, s1), `step` tokens each: [dim / 16][step / 2][16][2].
// Weights have rows of kSegment floats' room; out [16 or 32][dim].
template <bool kTwo>
void values_amx(const uint16_t* weights, const uint16_t* const* values, int s0, int s1, int step,
                int dim, float* out) {
    constexpr int kRowBytes = kSegment * sizeof(float);
    constexpr int kRow = kSegment * 2;  // in bfloat16
    memory_fence();
    for (int d = 0; d < dim; d += 2 * kGroup) {
        const bool pair = d + kGroup < dim;
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (kTwo) {
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int s = s0; s < s1; ++s) {
            const uint16_t* value = values[s] + d * step;
            _tile_loadd(4, weights + s * step, kRowBytes);
            _tile_stream_loadd(6, value, 64);
            _tile_dpbf16ps(0, 4, 6);
            if constexpr (kTwo) {
                _tile_loadd(5, weights + 16 * kRow + s * step, kRowBytes);
                _tile_dpbf16ps(2, 5, 6);
            }
            if (pair) {
                _tile_stream_loadd(7, value + step * kGroup, 64);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (kTwo) _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, out + d, dim * sizeof(float));
        if (pair) _tile_stored(1, out + d + kGroup, dim * sizeof(float));
        if constexpr (kTwo) {
            _tile_stored(2, out + 16 * dim + d, dim * sizeof(float));
            if (pair) _tile_stored(3, out + 16 * dim + d + kGroup, dim * sizeof(float));
        }
    }
    memory_fence();
}

// The products of attention.cpp's `Bf16`, for heads of at least `kKeyDepth` dimensions.
struct AmxProducts {
    static void prepare() { configure_tiles(kKeyDepth); }
    static void release() { _tile_release(); }
    static int query_stride(int dim) { return attention::query_stride(dim); }
    static void put_query(const float* query, int dim, uint16_t* out) {
        put_query_amx(query, dim, out);
    }
    static void scores(const uint16_t* q, const uint16_t* const* keys, int g0, int g1, int rows,
                       int step, int dim, float* scores) {
        if (step != kKeyDepth) configure_tiles(kKeyDepth);
        (rows > 16 ? scores_amx<true> : scores_amx<false>)(q, keys, g0, g1, dim, scores);
    }
    static void values(const uint16_t* weights, const uint16_t* const* values, int s0, int s1,
                       int rows, int step, int dim, float* out) {
        if (step != kKeyDepth) configure_tiles(step);
        (rows > 16 ? values_amx<true> : values_amx<false>)(weights, values, s0, s1, step, dim, out);
    }
};

}  // namespace chatrpc::attention
