// The products of product.h by AVX-512 VNNI and by AMX tiles.

#pragma once

#include "product.h"

namespace chatrpc {

// Multiplies rows [0, R) of a tile of activations, whose blocks of 64 inputs are kTileBytes apart.
template <int R>
inline void vnni_panel(const uint8_t* weights, const int8_t* rows, int64_t num_blocks,
                       const RowScale* row_scales, int64_t first_row, const Output& output) {
    // With few rows, each sum would wait for the one before it. So then even and odd inputs have
    // separate sums.
    constexpr int kPhases = R <= 2 ? 4 / R : 1;
    __m512i sums[R][2][kPhases];
    for (int r = 0; r < R; ++r) {
        for (auto& half : sums[r]) {
            for (auto& sum : half) sum = _mm512_setzero_si512();
            half[0] = _mm512_set1_epi32(-row_scales[first_row + r].compensation);
        }
    }
    for (int64_t b = 0; b < num_blocks; ++b) {
        const uint8_t* block = weights + b * kPanelBlockBytes;
        const int8_t* part = rows + b * kTileBytes;
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
            const __m512i low = _mm512_load_si512(block + 64 * j);
            const __m512i high = _mm512_load_si512(block + kTileBytes + 64 * j);
            _mm_prefetch(block + 128 * j + kPrefetchBytes, _MM_HINT_T0);
            _mm_prefetch(block + 128 * j + 64 + kPrefetchBytes, _MM_HINT_T0);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                int32_t four;
                std::memcpy(&four, part + 64 * r + 4 * j, sizeof four);
                const __m512i x = _mm512_set1_epi32(four);
                auto& sum = sums[r];
                sum[0][j % kPhases] = _mm512_dpbusd_epi32(sum[0][j % kPhases], low, x);
                sum[1][j % kPhases] = _mm512_dpbusd_epi32(sum[1][j % kPhases], high, x);
            }
        }
    }
    for (int half = 0; half < 2; ++half) {
        const Finish finish(output, half);
        for (int r = 0; r < R; ++r) {
            __m512i sum = sums[r][half][0];
            for (int p = 1; p < kPhases; ++p) sum = _mm512_add_epi32(sum, sums[r][half][p]);
            finish(first_row + r, row_scales[first_row + r], {sum});
        }
    }
}

inline void vnni_rows(int64_t count, const uint8_t* weights, const int8_t* rows,
                      int64_t num_blocks, const RowScale* scales, int64_t first,
                      const Output& output) {
    switch (count) {
        case 1: return vnni_panel<1>(weights, rows, num_blocks, scales, first, output);
        case 2: return vnni_panel<2>(weights, rows, num_blocks, scales, first, output);
        case 3: return vnni_panel<3>(weights, rows, num_blocks, scales, first, output);
        case 4: return vnni_panel<4>(weights, rows, num_blocks, scales, first, output);
        case 5: return vnni_panel<5>(weights, rows, num_blocks, scales, first, output);
        case 6: return vnni_panel<6>(weights, rows, num_blocks, scales, first, output);
        case 7: return vnni_panel<7>(weights, rows, num_blocks, scales, first, output);
        default: return vnni_panel<8>(weights, rows, num_blocks, scales, first, output);
    }
}

// Multiplies a panel with `num_rows` rows in tiles of 16, which are `tile_stride` bytes apart.
struct VectorProduct {
    void operator()(const uint8_t* weights, const int8_t* tiles, int64_t tile_stride,
                    int64_t num_rows, int64_t num_blocks, const RowScale* scales,
                    const Output& output) const {
        for (int64_t first = 0; first < num_rows; first += 8) {
            const int8_t* rows = tiles + first / kTileRows * tile_stride + first % kTileRows * 64;
            const int64_t count = num_rows - first < 8 ? num_rows - first : 8;
            vnni_rows(count, weights, rows, num_blocks, scales, first, output);
        }
    }
};

#ifdef __AMX_INT8__

// Eight tiles of 16 rows of 64 bytes, for the calling thread, from construction to destruction.
class TileScope {
  public:
    TileScope() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t column_bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        for (int tile = 0; tile < 8; ++tile) {
            config.column_bytes[tile] = 64;
            config.rows[tile] = kTileRows;
        }
        _tile_loadconfig(&config);
    }
    ~TileScope() { _tile_release(); }
    TileScope(const TileScope&) = delete;
    TileScope& operator=(const TileScope&) = delete;
};

inline void finish_tiles(const int32_t (*sums)[kTileRows * 16], int64_t first_row, int64_t count,
                         const RowScale* scales, const Output& output) {
    const Finish low(output, 0), high(output, 1);
    for (int64_t r = 0; r < count; ++r) {
        const RowScale& scale = scales[first_row + r];
        low(first_row + r, scale, without_bias({_mm512_load_si512(sums[0] + 16 * r)}, scale));
        high(first_row + r, scale, without_bias({_mm512_load_si512(sums[1] + 16 * r)}, scale));
    }
}

// The sums of a panel's two tiles of channels with 32 rows, or with 16, in tiles 0 to 3. `lines`
// lines of the weights to come are fetched at each step.
template <int RowTiles>
inline void amx_sums(const uint8_t* weights, const int8_t* a, int64_t tile_stride,
                     int64_t num_blocks, const uint8_t* next, int64_t lines) {
    // The intrinsics require a tile's number as a literal.
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (RowTiles == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t b = 0; b < num_blocks; ++b) {
        _tile_loadd(4, a + b * kTileBytes, 64);
        _tile_loadd(6, weights + b * kPanelBlockBytes, 64);
        _tile_loadd(7, weights + b * kPanelBlockBytes + kTileBytes, 64);
        if constexpr (RowTiles == 2) _tile_loadd(5, a + tile_stride + b * kTileBytes, 64);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        if constexpr (RowTiles == 2) {
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
        for (int64_t line = 0; line < lines; ++line, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    }
}

// The calling thread must be inside a TileScope.
struct AmxProduct {
    void operator()(const uint8_t* weights, const int8_t* tiles, int64_t tile_stride,
                    int64_t num_rows, int64_t num_blocks, const RowScale* scales,
                    const Output& output) const {
        alignas(64) int32_t sums[4][kTileRows * 16];
        // The next panel's weights are fetched during this one's products, some at every step.
        const uint8_t* next = weights + num_blocks * kPanelBlockBytes;
        const int64_t num_groups = (num_rows + 2 * kTileRows - 1) / (2 * kTileRows);
        const int64_t lines = (kPanelBlockBytes / 64 + num_groups - 1) / num_groups;
        for (int64_t first = 0; first < num_rows; first += 2 * kTileRows) {
            const int8_t* a = tiles + first / kTileRows * tile_stride;
            const int64_t count = num_rows - first;
            if (count > kTileRows) {
                amx_sums<2>(weights, a, tile_stride, num_blocks, next, lines);
                _tile_stored(2, sums[2], 64);
                _tile_stored(3, sums[3], 64);
            } else {
                amx_sums<1>(weights, a, tile_stride, num_blocks, next, lines);
            }
            _tile_stored(0, sums[0], 64);
            _tile_stored(1, sums[1], 64);
            next += num_blocks * lines * 64;
            finish_tiles(sums, first, count < kTileRows ? count : kTileRows, scales, output);
            if (count > kTileRows) {
                finish_tiles(sums + 2, first + kTileRows,
                             count < 2 * kTileRows ? count - kTileRows : kTileRows, scales, output);
            }
        }
    }
};

#endif  // __AMX_INT8__

}  // namespace chatrpc
