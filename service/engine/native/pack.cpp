// Converts a float weight to the packed int8 that the products read. It is rotated, quantized and
// packed in one pass, panel by panel on all threads.

#include "linear.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "product.h"
#include "quantize.h"
#include "rotate.h"
#include "threads.h"

namespace chatrpc {
namespace {

// Writes channel `channel` of a panel: the int8 values plus 128, four inputs in each line.
void put_channel(const float* rotated, int64_t num_blocks, float factor, int64_t channel,
                 uint8_t* panel) {
    uint8_t* const tile = panel + channel / 16 * kTileBytes + channel % 16 * 4;
    for (int64_t b = 0; b < num_blocks; ++b) {
        alignas(64) int8_t values[kBlock];
        store(values, to_int8(rotated + b * kBlock, broadcast(factor)));
        for (int line = 0; line < 16; ++line) {
            uint32_t four;
            std::memcpy(&four, values + 4 * line, sizeof four);
            four ^= 0x80808080u;
            std::memcpy(tile + b * kPanelBlockBytes + line * 64, &four, sizeof four);
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
