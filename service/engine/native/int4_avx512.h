// The expansion of int4.h in AVX-512, and products of few rows without a panel of int8 in memory.

#pragma once

#include "product_avx512.h"

namespace chatrpc {

// Each of 16 bytes four times.
inline __m512i four_times(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m512i order = _mm512_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303, 0x04040404,
                                            0x05050505, 0x06060606, 0x07070707, 0x08080808,
                                            0x09090909, 0x0a0a0a0a, 0x0b0b0b0b, 0x0c0c0c0c,
                                            0x0d0d0d0d, 0x0e0e0e0e, 0x0f0f0f0f);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), order);
}

inline __m512i lower_bits(__m512i bytes) {
    return _mm512_and_si512(bytes, _mm512_set1_epi8(15));
}
inline __m512i upper_bits(__m512i bytes) { return lower_bits(_mm512_srli_epi16(bytes, 4)); }

// There is no product of bytes. A factor in 16 bits multiplies two bytes at once, since no product
// exceeds a byte.
inline __m512i in_16_bits(__m512i bytes) {
    return _mm512_and_si512(bytes, _mm512_set1_epi16(0xff));
}

// The expansion of 16 channels' weights with the parameters of 32 inputs.
class ExpandGroup {
  public:
    ExpandGroup(const uint8_t* factors, const uint8_t* offsets) {
        const __m512i factor = four_times(factors);
        whole_ = in_16_bits(upper_bits(factor));
        sixteenths_ = in_16_bits(lower_bits(factor));
        offsets_ = four_times(offsets);
    }
    __m512i operator()(__m512i nibbles) const {
        const __m512i part = _mm512_mullo_epi16(nibbles, sixteenths_);
        const __m512i whole = _mm512_mullo_epi16(nibbles, whole_);
        return _mm512_add_epi8(_mm512_add_epi8(whole, upper_bits(part)), offsets_);
    }

  private:
    __m512i whole_, sixteenths_, offsets_;
};

// Expands the lines of 32 inputs into the lines of a panel's two tiles.
inline void expand_lines(const ExpandGroup& first, const ExpandGroup& second, const uint8_t* nibbles,
                         uint8_t* lines) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j, nibbles += 64, lines += 64) {
        _mm_prefetch(nibbles + kPrefetchBytes, _MM_HINT_T0);
        const __m512i both = _mm512_load_si512(nibbles);
        _mm512_store_si512(lines, first(lower_bits(both)));
        _mm512_store_si512(lines + kTileBytes, second(upper_bits(both)));
    }
}

// Multiplies rows [0, R) with the `num_blocks` blocks of a group; as vnni_panel. If `IsKept`, the int8
// weights are also written to `panel`, which takes almost no time.
template <int R, bool IsKept = false>
inline void group_panel(const uint8_t* group, const int8_t* rows, int64_t num_blocks,
                        const RowScale* row_scales, const Output& output, uint8_t* panel) {
    constexpr int kPhases = R <= 2 ? 4 / R : 1;
    __m512i sums[R][2][kPhases];
    for (int r = 0; r < R; ++r) {
        for (auto& half : sums[r]) {
            for (auto& sum : half) sum = _mm512_setzero_si512();
            half[0] = _mm512_set1_epi32(-row_scales[r].compensation);
        }
    }
    const uint8_t* const factors = group + 2 * kPanelChannels;
    const uint8_t* const offsets = factors + kGroupParameters;
    const uint8_t* const nibbles = offsets + kGroupParameters;
    for (int i = 0; i < 5; ++i) _mm_prefetch(group + 64 * i + kPrefetchBytes, _MM_HINT_T0);
    for (int64_t i = 0; i < 2 * num_blocks; ++i) {
        const uint8_t* const factor = factors + i * kPanelChannels;
        const uint8_t* const offset = offsets + i * kPanelChannels;
        const ExpandGroup first(factor, offset), second(factor + 16, offset + 16);
        const uint8_t* const lines = nibbles + i * 512;
        const int8_t* const part = rows + i / 2 * kTileBytes + i % 2 * 32;
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            const __m512i both = _mm512_load_si512(lines + 64 * j);
            _mm_prefetch(lines + 64 * j + kPrefetchBytes, _MM_HINT_T0);
            const __m512i low = first(lower_bits(both)), high = second(upper_bits(both));
            if constexpr (IsKept) {
                uint8_t* const line = panel + i / 2 * kPanelBlockBytes + i % 2 * 512 + 64 * j;
                _mm512_store_si512(line, low);
                _mm512_store_si512(line + kTileBytes, high);
            }
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
            finish(r, row_scales[r], {sum});
        }
    }
}

// Multiplies the blocks of a group with `num_rows` rows; as VectorProduct. `panel` is space for the
// group in int8.
inline void group_product(const uint8_t* group, const int8_t* tiles, int64_t tile_stride,
                          int64_t num_rows, int64_t num_blocks, const RowScale* scales,
                          const Output& output, uint8_t* panel) {
    switch (num_rows) {
        case 1: return group_panel<1>(group, tiles, num_blocks, scales, output, panel);
        case 2: return group_panel<2>(group, tiles, num_blocks, scales, output, panel);
        case 3: return group_panel<3>(group, tiles, num_blocks, scales, output, panel);
        case 4: return group_panel<4>(group, tiles, num_blocks, scales, output, panel);
        case 5: return group_panel<5>(group, tiles, num_blocks, scales, output, panel);
        case 6: return group_panel<6>(group, tiles, num_blocks, scales, output, panel);
        case 7: return group_panel<7>(group, tiles, num_blocks, scales, output, panel);
        case 8: return group_panel<8>(group, tiles, num_blocks, scales, output, panel);
        default: group_panel<8, true>(group, tiles, num_blocks, scales, output, panel);
    }
    for (int64_t first = 8; first < num_rows; first += 8) {
        const int8_t* rows = tiles + first / kTileRows * tile_stride + first % kTileRows * 64;
        const int64_t count = num_rows - first < 8 ? num_rows - first : 8;
        vnni_rows(count, panel, rows, num_blocks, scales, first, output);
    }
}

}  // namespace chatrpc
