// Converts weights to the packed formats of int4.h, panel by panel on all threads.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "int4.h"
#include "linear.h"
#include "rotate.h"
#include "threads.h"

namespace chatrpc {
namespace {

constexpr int64_t kGroupInputs = kGroupBlocks * kBlock;

// Calls `pack_panel(panel index)` for all panels, on all threads.
template <class PackPanel>
void for_each_panel(int64_t out_features, PackPanel pack_panel) {
    const int64_t num_panels = (out_features + kPanelChannels - 1) / kPanelChannels;
    in_parallel(omp_get_max_threads(), num_panels, 1, 1, [&](int thread, Parts& panels) {
        for (int64_t p, last; panels.take(thread, p, last);) {
            for (; p < last; ++p) pack_panel(p);
        }
    });
}

// Writes a channel's values for 32 inputs, each from 0 to 15, into the lines of these inputs. The
// lines are zeros before.
void put_nibbles(const uint8_t* values, int64_t channel, uint8_t* lines) {
    const int shift = channel < 16 ? 0 : 4;
    uint8_t* const place = lines + channel % 16 * 4;
    for (int64_t k = 0; k < kScaledInputs; ++k) {
        place[k / 4 * 64 + k % 4] |= static_cast<uint8_t>(values[k] << shift);
    }
}

// The quantization of 32 weights that minimizes the squared error, for a given scale of the channel.
struct Best {
    float error = std::numeric_limits<float>::infinity();
    int scale = 1, zero = 8;
};

// The integers q of 16 weights with w = (q - zero) * step, and z as floats.
inline Floats quantized(Floats w, Floats inverse, Floats zero, Floats least, Floats most) {
    const Floats q = to_floats(round_to_ints(w * inverse)) + zero;
    return min(max(q, least), most);
}

struct Limits {
    Floats zero, least, most;

    // v = (q - zero) * scale must fit into a signed byte.
    Limits(int scale, int z)
        : zero(broadcast(static_cast<float>(z))),
          least(broadcast(static_cast<float>(std::max(0, z - 128 / scale)))),
          most(broadcast(static_cast<float>(std::min(15, z + 127 / scale)))) {}
};

// The greatest group scale that a channel's scale is chosen for, and the part of a group's range
// that its 16 values should span. Measured: the least squared error.
constexpr float kTopScale = 15.0f;
constexpr float kSpan = 0.92f;

Best best_parameters(const float* weights, float low, float high, float channel_scale) {
    const Floats w[2] = {load(weights), load(weights + 16)};
    const float expected = (high - low) / (15.0f * channel_scale);
    const int first = std::clamp(static_cast<int>(0.75f * expected), 1, 16);
    const int last = std::clamp(static_cast<int>(1.02f * expected) + 1, 1, 16);
    Best best;
    for (int scale = first; scale <= last; ++scale) {
        const float step = static_cast<float>(scale) * channel_scale;
        const Floats steps = broadcast(step), inverse = broadcast(1.0f / step);
        const float middle = 7.5f - 0.5f * (low + high) / step;
        const int nearest = static_cast<int>(std::lround(std::clamp(middle, 1.0f, 14.0f)));
        for (int z = nearest - 1; z <= nearest + 1; ++z) {
            const Limits limits(scale, z);
            Floats errors = zero_floats();
            for (const Floats& part : w) {
                const Floats q = quantized(part, inverse, limits.zero, limits.least, limits.most);
                const Floats difference = fms(q - limits.zero, steps, part);
                errors = fma(difference, difference, errors);
            }
            const float error = sum(errors);
            if (error < best.error) best = {error, scale, z};
        }
    }
    return best;
}

// Writes channel `channel` of a panel from its rotated weights, and returns its scale.
float put_int4_channel(const float* rotated, int64_t num_blocks, int64_t channel, uint8_t* panel) {
    const int64_t num_parts = num_blocks * kBlock / kScaledInputs;
    float widest = 0.0f;
    thread_local std::vector<float> bounds;
    bounds.resize(2 * num_parts);
    for (int64_t i = 0; i < num_parts; ++i) {
        const Floats a = load(rotated + 32 * i), b = load(rotated + 32 * i + 16);
        const Floats zero = zero_floats();
        const float high = largest(max(a, b)), low = -largest(max(zero - a, zero - b));
        bounds[2 * i] = low;
        bounds[2 * i + 1] = high;
        widest = std::max(widest, high - low);
    }
    const float channel_scale = widest * (kSpan / (15.0f * kTopScale));
    if (!(1.0f / channel_scale < std::numeric_limits<float>::infinity())) return 0.0f;
    for (int64_t i = 0; i < num_parts; ++i) {
        const float* const weights = rotated + 32 * i;
        const Best best =
            best_parameters(weights, bounds[2 * i], bounds[2 * i + 1], channel_scale);
        const float step = static_cast<float>(best.scale) * channel_scale;
        const Limits limits(best.scale, best.zero);
        uint8_t values[kScaledInputs];
        for (int half = 0; half < 2; ++half) {
            float q[16];
            store(q, quantized(load(weights + 16 * half), broadcast(1.0f / step), limits.zero,
                               limits.least, limits.most));
            for (int k = 0; k < 16; ++k) values[16 * half + k] = static_cast<uint8_t>(q[k]);
        }
        uint8_t* const block = panel + i / 2 * kInt4BlockBytes;
        block[i % 2 * kPanelChannels + channel] =
            static_cast<uint8_t>((best.scale - 1) | best.zero << 4);
        put_nibbles(values, channel, block + 64 + i % 2 * 512);
    }
    return channel_scale;
}

template <class Type>
void pack_int4(const void* weight, int64_t out_features, int64_t in_features, uint8_t* packed,
               float* scales) {
    const auto* const values = static_cast<const typename Type::Value*>(weight);
    const int64_t num_blocks = (in_features + kBlock - 1) / kBlock;
    for_each_panel(out_features, [&](int64_t index) {
        thread_local std::vector<float> rotated;
        rotated.resize(num_blocks * kBlock);
        uint8_t* const panel = packed + index * num_blocks * kInt4BlockBytes;
        std::memset(panel, 0, num_blocks * kInt4BlockBytes);
        for (int64_t c = 0; c < kPanelChannels; ++c) {
            const int64_t n = index * kPanelChannels + c;
            scales[n] = 0.0f;
            if (n >= out_features) continue;
            const float amax =
                rotate<Type>(values + n * in_features, in_features, rotated.data());
            if (amax == amax) {
                scales[n] = put_int4_channel(rotated.data(), num_blocks, c, panel) * 0.125f;
            } else {
                scales[n] = amax;
            }
        }
    });
}

uint16_t bfloat16_above(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>((bits + 0xffffu) >> 16);
}

float to_float(uint16_t bfloat16) {
    const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// 32 weights of a channel: q * scale - minimum, with a scale that is not negative.
struct Part {
    uint8_t values[kScaledInputs] = {};
    uint8_t least = 0, most = 0;  // of the values
    float scale = 0.0f, minimum = 0.0f;

    float magnitude() const {
        return std::max(std::abs(static_cast<float>(least) * scale - minimum),
                        std::abs(static_cast<float>(most) * scale - minimum));
    }
};

Part read_part(const uint8_t* packed, float scale, float minimum) {
    Part part;
    for (int64_t k = 0; k < kScaledInputs; ++k) {
        part.values[k] = packed[k / 2] >> (k % 2 * 4) & 15;
    }
    if (scale < 0.0f) {  // q becomes 15 - q
        for (uint8_t& value : part.values) value = 15 - value;
        scale = -scale;
        minimum += 15.0f * scale;
    }
    part.scale = scale;
    part.minimum = minimum;
    part.least = *std::min_element(part.values, part.values + kScaledInputs);
    part.most = *std::max_element(part.values, part.values + kScaledInputs);
    return part;
}

// The value of q before the offset is added, as in int4.h.
inline int before_offset(int q, int factor) {
    return q * (factor >> 4) + (q * (factor & 15) >> 4);
}

// The offset for which the mean of 32 weights has the least error.
int best_offset(const Part& part, int factor, float group_scale) {
    float difference = 0.0f;
    for (const uint8_t q : part.values) {
        const float exact = (static_cast<float>(q) * part.scale - part.minimum) / group_scale;
        difference += exact - static_cast<float>(before_offset(q, factor));
    }
    const int offset = 128 + static_cast<int>(std::lround(difference / kScaledInputs));
    return std::clamp(offset, -before_offset(part.least, factor),
                      255 - before_offset(part.most, factor));
}

// Writes 128 inputs of channel `channel`, or the `num_parts` times 32 that exist, to a group.
void put_group(const Part* parts, int num_parts, int64_t channel, uint8_t* group) {
    float largest_scale = 0.0f, magnitude = 0.0f;
    bool is_finite = true;
    for (int i = 0; i < num_parts; ++i) {
        is_finite = is_finite && std::isfinite(parts[i].magnitude() + parts[i].scale);
        largest_scale = std::max(largest_scale, parts[i].scale);
        magnitude = std::max(magnitude, parts[i].magnitude());
    }
    // A weight of 126 has a step left for the rounding of the offset.
    const float least = std::max(magnitude / 126.0f, largest_scale * (16.0f / 255.0f));
    const bool is_zero = is_finite && !(1.0f / least < std::numeric_limits<float>::infinity());
    const uint16_t stored = !is_finite ? 0x7fc0 : is_zero ? 0 : bfloat16_above(least);
    std::memcpy(group + 2 * channel, &stored, sizeof stored);
    uint8_t* const factors = group + 2 * kPanelChannels;
    uint8_t* const offsets = factors + kGroupParameters;
    uint8_t* const nibbles = offsets + kGroupParameters;
    for (int i = 0; i < 4; ++i) {
        int factor = 0, offset = 128;
        if (i < num_parts && is_finite && !is_zero) {
            const float scale = to_float(stored);
            factor = static_cast<int>(std::lround(parts[i].scale * 16.0f / scale));
            offset = best_offset(parts[i], factor, scale);
            put_nibbles(parts[i].values, channel, nibbles + i * 512);
        }
        factors[i * kPanelChannels + channel] = static_cast<uint8_t>(factor);
        offsets[i * kPanelChannels + channel] = static_cast<uint8_t>(offset);
    }
}

}  // namespace
}  // namespace chatrpc

using namespace chatrpc;

void chatrpc_int4_pack(const void* weight, int32_t type, int64_t out_features, int64_t in_features,
                       uint8_t* packed, float* scales) {
    switch (type) {
        case 1: return pack_int4<BFloat16>(weight, out_features, in_features, packed, scales);
        case 2: return pack_int4<Float16>(weight, out_features, in_features, packed, scales);
        default: return pack_int4<Float32>(weight, out_features, in_features, packed, scales);
    }
}

void chatrpc_groups_pack(const uint8_t* values, const float* scales, const float* minimums,
                         int64_t out_features, int64_t in_features, int64_t group_size,
                         uint8_t* packed) {
    const int64_t num_blocks = (in_features + kBlock - 1) / kBlock;
    const int64_t bytes = panel_bytes(kGroups, num_blocks);
    const int64_t num_scales = in_features / group_size;
    for_each_panel(out_features, [&](int64_t index) {
        uint8_t* const panel = packed + index * bytes;
        std::memset(panel, 0, bytes);
        const int64_t last = std::min(out_features - index * kPanelChannels, kPanelChannels);
        for (int64_t c = 0; c < last; ++c) {
            const int64_t n = index * kPanelChannels + c;
            for (int64_t k = 0; k < in_features; k += kGroupInputs) {
                Part parts[4];
                int num_parts = 0;
                for (; num_parts < 4 && k + num_parts * kScaledInputs < in_features; ++num_parts) {
                    const int64_t place = k + num_parts * kScaledInputs;
                    const float scale = scales[n * num_scales + place / group_size];
                    const float minimum = minimums == nullptr
                                              ? 8.0f * scale
                                              : minimums[n * num_scales + place / group_size];
                    parts[num_parts] = read_part(
                        values + (n * in_features + place) / 2, scale, minimum);
                }
                put_group(parts, num_parts, c, panel + k / kGroupInputs * kGroupBytes);
            }
        }
    });
}
