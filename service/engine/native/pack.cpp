// Converts a weight to the packed int8 that the products read. It is rotated, quantized and packed in
// one pass, panel by panel on all threads.

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "blocks.h"
#include "linear.h"
#include "pack.h"
#include "quantize.h"
#include "rotate.h"

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

// Rotates row `n` as `rotate` does.
template <class Type>
struct RotateFloats {
    const typename Type::Value* weight;
    int64_t in_features;

    float operator()(int64_t n, float* rotated) const {
        return rotate<Type>(weight + n * in_features, in_features, rotated);
    }
};

template <class Rows>
struct RotateBlocks {
    Rows rows;
    int64_t in_features;

    float operator()(int64_t n, float* rotated) const {
        for (int64_t k = 0; k < in_features; k += kPartValues) {
            Part part;
            rows.read(n, k, part);
            for (int64_t i = 0; i < kPartValues; ++i) {
                rotated[k + i] =
                    static_cast<float>(part.values[i]) * part.scales[i / 16] - part.minimum;
            }
        }
        return rotate<Float32>(rotated, in_features, rotated);
    }
};

template <class Rotate>
void pack(const Rotate& rotate_row, int64_t out_features, int64_t in_features, uint8_t* packed,
          float* scales) {
    const int64_t num_blocks = (in_features + kBlock - 1) / kBlock;
    for_each_panel(out_features, [&](int64_t index) {
        thread_local std::vector<float> rotated;
        rotated.resize(num_blocks * kBlock);
        uint8_t* const panel = packed + index * num_blocks * kPanelBlockBytes;
        for (int64_t c = 0; c < kPanelChannels; ++c) {
            const int64_t n = index * kPanelChannels + c;
            float amax = n < out_features ? rotate_row(n, rotated.data()) : 0.0f;
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
    });
}

template <class Type>
void pack_floats(const void* weight, int64_t out_features, int64_t in_features, uint8_t* packed,
                 float* scales) {
    const RotateFloats<Type> rotate{static_cast<const typename Type::Value*>(weight), in_features};
    pack(rotate, out_features, in_features, packed, scales);
}

}  // namespace
}  // namespace chatrpc

using namespace chatrpc;

void chatrpc_linear_pack(const void* weight, int32_t type, int64_t out_features,
                         int64_t in_features, uint8_t* packed, float* scales) {
    switch (type) {
        case 1: return pack_floats<BFloat16>(weight, out_features, in_features, packed, scales);
        case 2: return pack_floats<Float16>(weight, out_features, in_features, packed, scales);
        default: return pack_floats<Float32>(weight, out_features, in_features, packed, scales);
    }
}

void chatrpc_linear_pack_blocks(const uint8_t* blocks, int32_t type, int64_t out_features,
                                int64_t in_features, uint8_t* packed, float* scales) {
    with_block_rows(type, blocks, in_features, [&](const auto& rows) {
        pack(RotateBlocks<std::decay_t<decltype(rows)>>{rows, in_features}, out_features,
             in_features, packed, scales);
    });
}
