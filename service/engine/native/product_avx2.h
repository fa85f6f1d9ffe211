// The products of product.h by AVX2, or by AVX-VNNI on 256 bits.

#pragma once

#include <algorithm>

#include "product.h"

namespace chatrpc {

// Eight channels' weights of four inputs, as stored or prepared for `add_products`.
#if defined(__AVXVNNI__) || defined(CHATRPC_EVEX_VNNI)

struct Weights256 {
    __m256i biased;

    explicit Weights256(__m256i stored) : biased(stored) {}
};

inline __m256i add_products(__m256i sum, const Weights256& weights, __m256i x) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, weights.biased, x);
#else
    return _mm256_dpbusd_epi32(sum, weights.biased, x);
#endif
}

constexpr bool kIsBiased = true;

#else

// vpmaddubsw adds two products in 16 bits, with saturation. The products of magnitudes up to 127 do
// not saturate, those of the stored bytes up to 255 would. So the sign moves to the activations.
struct Weights256 {
    __m256i weights, magnitudes;

    explicit Weights256(__m256i stored)
        : weights(_mm256_xor_si256(stored, _mm256_set1_epi8(-128))),
          magnitudes(_mm256_abs_epi8(weights)) {}
};

inline __m256i add_products(__m256i sum, const Weights256& weights, __m256i x) {
    const __m256i pairs =
        _mm256_maddubs_epi16(weights.magnitudes, _mm256_sign_epi8(x, weights.weights));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

constexpr bool kIsBiased = false;

#endif

// Multiplies rows [0, R) of a tile of activations, whose blocks of 64 inputs are kTileBytes apart,
// with `Halves` halves of a panel, the first of which is `half`.
template <int R, int Halves>
inline void vector_panel(const uint8_t* weights, const int8_t* rows, int64_t num_blocks,
                         const RowScale* row_scales, int64_t first_row, const Output& output,
                         int half) {
    constexpr int kPhases = R == 1 ? 2 : 1;  // separate sums, which need not wait for one another
    __m256i sums[R][Halves][2][kPhases];
    for (auto& row : sums)
        for (auto& of_half : row)
            for (auto& vector : of_half)
                for (auto& sum : vector) sum = _mm256_setzero_si256();
    for (int64_t b = 0; b < num_blocks; ++b) {
        const uint8_t* block = weights + b * kPanelBlockBytes + half * kTileBytes;
        const int8_t* part = rows + b * kTileBytes;
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
            __m256i x[R];
            for (int r = 0; r < R; ++r) {
                int32_t four;
                std::memcpy(&four, part + 64 * r + 4 * j, sizeof four);
                x[r] = _mm256_set1_epi32(four);
            }
#pragma GCC unroll 2
            for (int h = 0; h < Halves; ++h) {
                const uint8_t* line = block + h * kTileBytes + 64 * j;
                __builtin_prefetch(line + kPrefetchBytes, 0, 3);
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) {
                    const Weights256 vector(load_256(line + 32 * i));
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r) {
                        auto& sum = sums[r][h][i][j % kPhases];
                        sum = add_products(sum, vector, x[r]);
                        // Otherwise GCC changes the order of the additions, and keeps their
                        // operands in memory.
                        __asm__("" : "+x"(sum));
                    }
                }
            }
        }
    }
    for (int h = 0; h < Halves; ++h) {
        const Finish finish(output, half + h);
        for (int r = 0; r < R; ++r) {
            Ints sum{sums[r][h][0][0], sums[r][h][1][0]};
            for (int p = 1; p < kPhases; ++p) sum = sum + Ints{sums[r][h][0][p], sums[r][h][1][p]};
            const RowScale& of_row = row_scales[first_row + r];
            finish(first_row + r, of_row, kIsBiased ? without_bias(sum, of_row) : sum);
        }
    }
}

constexpr int64_t kRowsInRegisters = 4;

inline void vector_rows(int64_t count, const uint8_t* weights, const int8_t* rows,
                        int64_t num_blocks, const RowScale* scales, int64_t first,
                        const Output& output) {
    // Sums of more than two rows with a whole panel do not fit into the registers.
    switch (count) {
        case 1: return vector_panel<1, 2>(weights, rows, num_blocks, scales, first, output, 0);
        case 2: return vector_panel<2, 2>(weights, rows, num_blocks, scales, first, output, 0);
        case 3:
            vector_panel<3, 1>(weights, rows, num_blocks, scales, first, output, 0);
            return vector_panel<3, 1>(weights, rows, num_blocks, scales, first, output, 1);
        default:
            vector_panel<4, 1>(weights, rows, num_blocks, scales, first, output, 0);
            return vector_panel<4, 1>(weights, rows, num_blocks, scales, first, output, 1);
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
