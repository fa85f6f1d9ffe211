// Converts a float weight to the packed int8 that the products read. It is rotated, quantized and
// packed in one pass, panel by panel on all threads.

#include "linear.h"

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "product.h"
#include "quantize.h"
#include "threads.h"

namespace chatrpc {
namespace {

struct Float32 {
    using Value = float;
    static __m512 load(const Value* x) { return _mm512_loadu_ps(x); }
};

struct BFloat16 {
    using Value = uint16_t;
    static __m512 load(const Value* x) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
};

struct Float16 {
    using Value = uint16_t;
    static __m512 load(const Value* x) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    }
};

// Writes the transform of a row's blocks, without its factor 1/8, to `rotated`. Returns the largest
// magnitude; NaN if a weight is not finite.
template <class Type>
float rotate(const typename Type::Value* row, int64_t size, float* rotated) {
    __m512 largest = _mm512_setzero_ps();
    __m512i largest_bits = _mm512_setzero_si512();  // shows what is not finite: see quantize_row
    for (int64_t k = 0; k < size; k += kBlock) {
        typename Type::Value last[kBlock] = {};
        const typename Type::Value* block = row + k;
        if (size - k < kBlock) {
            std::memcpy(last, block, (size - k) * sizeof *block);
            block = last;
        }
        __m512 v[4];
        for (int i = 0; i < 4; ++i) v[i] = Type::load(block + 16 * i);
        hadamard(v);
        for (int i = 0; i < 4; ++i) {
            _mm512_storeu_ps(rotated + k + 16 * i, v[i]);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(v[i]));
        }
        const __m512i bits = _mm512_castps_si512(v[0]);
        largest_bits = _mm512_max_epu32(largest_bits, _mm512_add_epi32(bits, bits));
    }
    const float amax = _mm512_reduce_max_ps(largest);
    const bool is_finite = _mm512_reduce_max_epu32(largest_bits) < 0xff000000u &&
                           amax <= std::numeric_limits<float>::max();
    return is_finite ? amax : std::numeric_limits<float>::quiet_NaN();
}

// Writes channel `channel` of a panel: the int8 values plus 128, four inputs in each line.
void put_channel(const float* rotated, int64_t num_blocks, float factor, int64_t channel,
                 uint8_t* panel) {
    uint8_t* const tile = panel + channel / 16 * kTileBytes + channel % 16 * 4;
    for (int64_t b = 0; b < num_blocks; ++b) {
        alignas(64) uint32_t fours[16];
        _mm512_store_si512(fours, to_int8(rotated + b * kBlock, _mm512_set1_ps(factor)));
        for (int line = 0; line < 16; ++line) {
            const uint32_t biased = fours[line] ^ 0x80808080u;
            std::memcpy(tile + b * kPanelBlockBytes + line * 64, &biased, sizeof biased);
        }
    }
}

template <class Type>
void pack_panel(const typename Type::Value* weight, int64_t out_features, int64_t in_features,
                int64_t index, uint8_t* packed, float* scales) {
    const int64_t num_blocks = (in_features + kBlock - 1) / kBlock;
    thread_local std::vector<float> rotated;
    rotated.resize(num_blocks * kBlock);
    uint8_t* const panel = packed + index * num_blocks * kPanelBlockBytes;
    for (int64_t c = 0; c < kPanelChannels; ++c) {
        const int64_t n = index * kPanelChannels + c;
        float amax = 0.0f;
        if (n < out_features) amax = rotate<Type>(weight + n * in_features, in_features, rotated.data());
        // Zeros, weights so small that the factor overflows, or some that are not finite.
        float factor = 127.0f / amax;
        if (!(factor < std::numeric_limits<float>::infinity())) {
            factor = 0.0f;
            std::fill(rotated.begin(), rotated.end(), 0.0f);
            if (amax == amax) amax = 0.0f;
        }
        scales[n] = amax * (1.0f / (127.0f * 8.0f));
        put_channel(rotated.data(), num_blocks, factor, c, panel);
    }
}

template <class Type>
void pack(const void* weight, int64_t out_features, int64_t in_features, uint8_t* packed,
          float* scales) {
    const auto* const values = static_cast<const typename Type::Value*>(weight);
    const int64_t num_panels = (out_features + kPanelChannels - 1) / kPanelChannels;
    in_parallel(omp_get_max_threads(), num_panels, 1, 1, [&](int thread, Parts& panels) {
        for (int64_t p, last; panels.take(thread, p, last);) {
            for (; p < last; ++p) {
                pack_panel<Type>(values, out_features, in_features, p, packed, scales);
            }
        }
    });
}

}  // namespace
}  // namespace chatrpc

using namespace chatrpc;

void chatrpc_linear_pack(const void* weight, int32_t type, int64_t out_features,
                         int64_t in_features, uint8_t* packed, float* scales) {
    switch (type) {
        case 1: return pack<BFloat16>(weight, out_features, in_features, packed, scales);
        case 2: return pack<Float16>(weight, out_features, in_features, packed, scales);
        default: return pack<Float32>(weight, out_features, in_features, packed, scales);
    }
}
