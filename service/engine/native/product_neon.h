// The products of product.h by NEON: sdot, or usdot and usmmla where the CPU has them (i8mm).

#pragma once

#include <arm_neon.h>

#include <algorithm>

#include "product.h"

namespace chatrpc {

#ifdef __ARM_FEATURE_MATMUL_INT8

// The bytes as they are stored: usdot multiplies unsigned with signed ones.
using StoredWeights = uint8x16_t;
constexpr bool kIsBiased = true;

inline StoredWeights load_weights(const uint8_t* line) { return vld1q_u8(line); }

template <int Lane>
inline int32x4_t add_products(int32x4_t sum, StoredWeights weights, int8x16_t x) {
    return vusdotq_laneq_s32(sum, weights, x, Lane);
}

#else

using StoredWeights = int8x16_t;
constexpr bool kIsBiased = false;

inline StoredWeights load_weights(const uint8_t* line) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(line), vdupq_n_u8(128)));
}

template <int Lane>
inline int32x4_t add_products(int32x4_t sum, StoredWeights weights, int8x16_t x) {
    return vdotq_laneq_s32(sum, weights, x, Lane);
}

#endif

// Multiplies 16 channels (one line of a tile) with four inputs of R rows.
template <int R, int Lane>
inline void dot_line(const uint8_t* line, const int8x16_t* x, Ints* sums) {
    StoredWeights weights[4];
    for (int i = 0; i < 4; ++i) weights[i] = load_weights(line + 16 * i);
    __builtin_prefetch(line + kPrefetchBytes, 0, 3);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            sums[r].v[i] = add_products<Lane>(sums[r].v[i], weights[i], x[r]);
        }
    }
}

// Multiplies rows [0, R) of a tile of activations, whose blocks of 64 inputs are kTileBytes apart,
// with half a panel.
template <int R>
inline void dot_panel(const uint8_t* weights, const int8_t* rows, int64_t num_blocks, Ints* sums) {
    for (int64_t b = 0; b < num_blocks; ++b) {
        const uint8_t* const block = weights + b * kPanelBlockBytes;
#pragma GCC unroll 4
        for (int j = 0; j < 16; j += 4) {
            int8x16_t x[R];
            for (int r = 0; r < R; ++r) x[r] = vld1q_s8(rows + b * kTileBytes + 64 * r + 4 * j);
            dot_line<R, 0>(block + 64 * j, x, sums);
            dot_line<R, 1>(block + 64 * j + 64, x, sums);
            dot_line<R, 2>(block + 64 * j + 128, x, sums);
            dot_line<R, 3>(block + 64 * j + 192, x, sums);
        }
    }
}

#ifdef __ARM_FEATURE_MATMUL_INT8

// The same for an even number of rows. usmmla multiplies two channels of eight inputs with two rows
// of eight inputs, twice as many products in an instruction as usdot.
template <int R>
inline void matmul_panel(const uint8_t* weights, const int8_t* rows, int64_t num_blocks,
                         Ints* sums) {
    int32x4_t tiles[R / 2][8];  // two channels, each with two rows
    for (auto& pair : tiles)
        for (auto& tile : pair) tile = vdupq_n_s32(0);
    for (int64_t b = 0; b < num_blocks; ++b) {
        const uint8_t* const block = weights + b * kPanelBlockBytes;
        const int8_t* const part = rows + b * kTileBytes;
#pragma GCC unroll 8
        for (int j = 0; j < 16; j += 2) {
            int8x16_t x[R / 2];
            for (int p = 0; p < R / 2; ++p) {
                const int8_t* const row = part + 128 * p + 4 * j;
                x[p] = vcombine_s8(vld1_s8(row), vld1_s8(row + 64));
            }
            const uint8_t* const line = block + 64 * j;
            __builtin_prefetch(line + kPrefetchBytes, 0, 3);
            __builtin_prefetch(line + 64 + kPrefetchBytes, 0, 3);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                // Four channels' inputs 0 to 3 and 4 to 7 become eight inputs of two channels each.
                const uint32x4_t first = vreinterpretq_u32_u8(vld1q_u8(line + 16 * i));
                const uint32x4_t second = vreinterpretq_u32_u8(vld1q_u8(line + 64 + 16 * i));
                const uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(first, second));
                const uint8x16_t high = vreinterpretq_u8_u32(vzip2q_u32(first, second));
#pragma GCC unroll 2
                for (int p = 0; p < R / 2; ++p) {
                    tiles[p][2 * i] = vusmmlaq_s32(tiles[p][2 * i], low, x[p]);
                    tiles[p][2 * i + 1] = vusmmlaq_s32(tiles[p][2 * i + 1], high, x[p]);
                }
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < 4; ++i) {
            const int32x4_t low = tiles[r / 2][2 * i], high = tiles[r / 2][2 * i + 1];
            sums[r].v[i] = r % 2 == 0 ? vuzp1q_s32(low, high) : vuzp2q_s32(low, high);
        }
    }
}

#endif

template <int R>
inline void vector_panel(const uint8_t* weights, const int8_t* rows, int64_t num_blocks,
                         const RowScale* row_scales, int64_t first_row, const Output& output) {
    for (int half = 0; half < 2; ++half) {
        Ints sums[R];
        std::fill(sums, sums + R, zero_ints());
        const uint8_t* const first = weights + half * kTileBytes;
#ifdef __ARM_FEATURE_MATMUL_INT8
        if constexpr (R % 2 == 0) {
            matmul_panel<R>(first, rows, num_blocks, sums);
        } else {
            dot_panel<R>(first, rows, num_blocks, sums);
        }
#else
        dot_panel<R>(first, rows, num_blocks, sums);
#endif
        const Finish finish(output, half);
        for (int r = 0; r < R; ++r) {
            const RowScale& of_row = row_scales[first_row + r];
            finish(first_row + r, of_row, kIsBiased ? without_bias(sums[r], of_row) : sums[r]);
        }
    }
}

constexpr int64_t kRowsInRegisters = 4;

inline void vector_rows(int64_t count, const uint8_t* weights, const int8_t* rows,
                        int64_t num_blocks, const RowScale* scales, int64_t first,
                        const Output& output) {
    switch (count) {
        case 1: return vector_panel<1>(weights, rows, num_blocks, scales, first, output);
        case 2: return vector_panel<2>(weights, rows, num_blocks, scales, first, output);
        case 3: return vector_panel<3>(weights, rows, num_blocks, scales, first, output);
        default: return vector_panel<4>(weights, rows, num_blocks, scales, first, output);
    }
}

// Multiplies a panel with `num_rows` rows in tiles of 16, which are `tile_stride` bytes apart.
struct VectorProduct {
    void operator()(const uint8_t* weights, const int8_t* tiles, int64_t tile_stride,
                    int64_t num_rows, int64_t num_blocks, const RowScale* scales,
                    const Output& output) const {
        for (int64_t first = 0; first < num_rows; first += kRowsInRegisters) {
            const int8_t* rows = tiles + first / kTileRows * tile_stride + first % kTileRows * 64;
            const int64_t count = std::min(num_rows - first, kRowsInRegisters);
            vector_rows(count, weights, rows, num_blocks, scales, first, output);
        }
    }
};

}  // namespace chatrpc
