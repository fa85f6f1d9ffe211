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
class ExpandInt4 {
  public:
    explicit ExpandInt4(const uint8_t* parameters) {
        const __m512i both = four_times(parameters);
        const __m512i scale = _mm512_add_epi8(lower_bits(both), _mm512_set1_epi8(1));
        factors_ = in_16_bits(scale);
        offsets_ = _mm512_sub_epi8(_mm512_set1_epi8(-128),
                                   _mm512_mullo_epi16(upper_bits(both), factors_));
    }
    __m512i operator()(__m512i nibbles) const {
        return _mm512_add_epi8(_mm512_mullo_epi16(nibbles, factors_), offsets_);
    }

  private:
    __m512i factors_, offsets_;
};

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
template <class Expand>
inline void expand_lines(const Expand& first, const Expand& second, const uint8_t* nibbles,
                         uint8_t* lines) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j, nibbles += 64, lines += 64) {
        _mm_prefetch(nibbles + kPrefetchBytes, _MM_HINT_T0);
        const __m512i both = _mm512_load_si512(nibbles);
        _mm512_store_si512(lines, first(lower_bits(both)));
        _mm512_store_si512(lines + kTileBytes, second(upper_bits(both)));
    }
}

// Multiplies rows [0, R) with a panel in the format kInt4; as vnni_panel. If `IsKept`, the panel is
// also written to `expanded`, which takes almost no time.
template <int R, bool IsKept = false>
inline void int4_panel(const uint8_t* weights, const int8_t* rows, int64_t num_blocks,
                       const RowScale* row_scales, const Output& output,
                       uint8_t* expanded = nullptr) {
    constexpr int kPhases = R <= 2 ? 4 / R : 1;
    __m512i sums[R][2][kPhases];
    for (auto& row : sums)
        for (auto& half : row)
            for (auto& sum : half) sum = _mm512_setzero_si512();
    for (int64_t b = 0; b < num_blocks; ++b) {
        const uint8_t* const block = weights + b * kInt4BlockBytes;
        _mm_prefetch(block + kPrefetchBytes, _MM_HINT_T0);
        for (int half = 0; half < 2; ++half) {
            const uint8_t* const parameters = block + half * kPanelChannels;
            const ExpandInt4 first(parameters), second(parameters + 16);
            const uint8_t* const nibbles = block + 64 + 512 * half;
            const int8_t* const part = rows + b * kTileBytes + 32 * half;
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) {
                const __m512i both = _mm512_load_si512(nibbles + 64 * j);
                _mm_prefetch(nibbles + 64 * j + kPrefetchBytes, _MM_HINT_T0);
                const __m512i low = first(lower_bits(both)), high = second(upper_bits(both));
                if constexpr (IsKept) {
                    uint8_t* const line =
                        expanded + b * kPanelBlockBytes + 512 * half + 64 * j;
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
    }
    for (int half = 0; half < 2; ++half) {
        const Finish finish(output, half);
        for (int r = 0; r < R; ++r) {
            __m512i sum = sums[r][half][0];
            for (int p = 1; p < kPhases; ++p) sum = _mm512_add_epi32(sum, sums[r][half][p]);
            finish(r, row_scales[r], without_bias({sum}, row_scales[r]));
        }
    }
}

// Multiplies a panel in the format kInt4 with `num_rows` rows; as VectorProduct. `expanded` is space
// for the panel in int8.
inline void int4_product(const uint8_t* weights, const int8_t* tiles, int64_t tile_stride,
                         int64_t num_rows, int64_t num_blocks, const RowScale* scales,
                         const Output& output, uint8_t* expanded) {
    switch (num_rows) {
        case 1: return int4_panel<1>(weights, tiles, num_blocks, scales, output);
        case 2: return int4_panel<2>(weights, tiles, num_blocks, scales, output);
        case 3: return int4_panel<3>(weights, tiles, num_blocks, scales, output);
        case 4: return int4_panel<4>(weights, tiles, num_blocks, scales, output);
        case 5: return int4_panel<5>(weights, tiles, num_blocks, scales, output);
        case 6: return int4_panel<6>(weights, tiles, num_blocks, scales, output);
        case 7: return int4_panel<7>(weights, tiles, num_blocks, scales, output);
        case 8: return int4_panel<8>(weights, tiles, num_blocks, scales, output);
        default: int4_panel<8, true>(weights, tiles, num_blocks, scales, output, expanded);
    }
    for (int64_t first = 8; first < num_rows; first += 8) {
        const int8_t* rows = tiles + first / kTileRows * tile_stride + first % kTileRows * 64;
        const int64_t count = num_rows - first < 8 ? num_rows - first : 8;
        vnni_rows(count, expanded, rows, num_blocks, scales, first, output);
    }
}

}  // namespace chatrpc
