// Converts weights to the packed format of int4.h, panel by panel on all threads.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "blocks.h"
#include "int4.h"
#include "linear.h"
#include "pack.h"
#include "rotate.h"

namespace chatrpc {
namespace {

constexpr int64_t kGroupInputs = kGroupBlocks * kBlock;
constexpr int64_t kGroupParts = kGroupInputs / kPartValues;
static_assert(kPartValues == kScaledInputs);

// The rows of a weight in the groups of linear.h.
struct GroupedRows {
    const uint8_t* values;
    const float* scales;
    const float* minimums;
    int64_t in_features, group_size;

    void read(int64_t n, int64_t k, Part& part) const {
        const uint8_t* const packed = values + (n * in_features + k) / 2;
        for (int i = 0; i < 16; ++i) {
            part.values[2 * i] = static_cast<int8_t>(packed[i] & 15);
            part.values[2 * i + 1] = static_cast<int8_t>(packed[i] >> 4);
        }
        const int64_t group = (n * in_features + k) / group_size;
        part.scales[0] = scales[group];
        part.minimum = minimums == nullptr ? 8.0f * scales[group] : minimums[group];
    }
};

// 32 weights as floats.
struct Weights32 {
    Floats low, high;

    bool are_finite() const { return (finite_lanes(low) & finite_lanes(high)) == 0xffff; }
};

// The parts of a group's range that its 16 values are tried on. Values outside are clipped.
constexpr float kSpans[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f};

// Quantizes 32 weights to values from 0 to 15 with the scale and the minimum of the least squared error
// among several clippings of the range. For the values of each clipping they are a linear regression.
void quantize_part(const Weights32& w, Part& part) {
    part.scales[0] = part.minimum = 0.0f;
    std::memset(part.values, 0, sizeof part.values);
    const Floats zero = zero_floats();
    const float greatest = largest(max(w.low, w.high));
    const float least = -largest(max(zero - w.low, zero - w.high));
    if (!w.are_finite() || !(greatest - least <= std::numeric_limits<float>::max())) {
        part.scales[0] = std::numeric_limits<float>::quiet_NaN();
        return;
    }
    constexpr float kCount = kPartValues;
    const float sum_w = sum(w.low + w.high);
    part.minimum = -sum_w / kCount;
    float best = 0.0f;  // the part of the squared error that the values remove
    for (const float span : kSpans) {
        const float step = (greatest - least) * span * (1.0f / 15.0f);
        const float inverse = 1.0f / step;
        if (!(inverse < std::numeric_limits<float>::infinity())) return;
        const Floats factor = broadcast(inverse);
        const Floats offset = broadcast(7.5f - 0.5f * (least + greatest) * inverse);
        const Floats fifteen = broadcast(15.0f);
        const Ints low = round_to_ints(min(max(fma(w.low, factor, offset), zero), fifteen));
        const Ints high = round_to_ints(min(max(fma(w.high, factor, offset), zero), fifteen));
        const Floats a = to_floats(low), b = to_floats(high);
        const float sum_q = sum(a + b);
        const float sum_qq = sum(fma(a, a, b * b));
        const float sum_qw = sum(fma(a, w.low, b * w.high));
        const float variance = kCount * sum_qq - sum_q * sum_q;
        const float covariance = kCount * sum_qw - sum_q * sum_w;
        const float removed = covariance * covariance / variance;
        if (!(removed > best)) continue;
        best = removed;
        part.scales[0] = covariance / variance;
        part.minimum = (part.scales[0] * sum_q - sum_w) / kCount;
        int8_t q[2 * kPartValues];
        store(q, to_bytes(low, high, low, high));
        std::memcpy(part.values, q, sizeof part.values);
    }
}

// The rows of a float weight, quantized to 4 bits when they are read.
template <class Type>
struct FloatRows {
    const typename Type::Value* values;
    int64_t in_features;

    void read(int64_t n, int64_t k, Part& part) const {
        typename Type::Value last[kPartValues] = {};
        const typename Type::Value* from = values + n * in_features + k;
        if (in_features - k < kPartValues) {
            std::memcpy(last, from, (in_features - k) * sizeof *from);
            from = last;
        }
        quantize_part({Type::load(from), Type::load(from + 16)}, part);
    }
};

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

int nearest(float x) { return static_cast<int>(std::floor(x + 0.5f)); }

// 32 weights of a channel, with a scale that is not negative.
struct ChannelPart : Part {
    int least = 0, most = 0, sum = 0;  // of the values

    void complete() {
        if (scales[0] < 0.0f) {
            for (int8_t& value : values) value = static_cast<int8_t>(15 - value);
            scales[0] = -scales[0];
            minimum += 15.0f * scales[0];
        }
        uint8_t low = 15, high = 0;
        int total = 0;
        for (int k = 0; k < kPartValues; ++k) {
            const auto value = static_cast<uint8_t>(values[k]);
            low = std::min(low, value);
            high = std::max(high, value);
            total += value;
        }
        least = low, most = high, sum = total;
    }
    float magnitude() const {
        return std::max(std::abs(static_cast<float>(least) * scales[0] - minimum),
                        std::abs(static_cast<float>(most) * scales[0] - minimum));
    }
};

// The value of q before the offset is added, as in int4.h.
inline int before_offset(int q, int factor) {
    return q * (factor >> 4) + (q * (factor & 15) >> 4);
}

// The offset for which the mean of 32 weights has the least error.
int best_offset(const ChannelPart& part, int factor, float inverse_scale) {
    const auto sixteenths = static_cast<uint8_t>(factor & 15);
    int fractions = 0;
    for (int k = 0; k < kPartValues; ++k) {
        fractions += static_cast<uint8_t>(static_cast<uint8_t>(part.values[k]) * sixteenths) >> 4;
    }
    const float exact = static_cast<float>(part.sum) * part.scales[0] - kPartValues * part.minimum;
    const auto stored = static_cast<float>(part.sum * (factor >> 4) + fractions);
    const int offset = 128 + nearest((exact * inverse_scale - stored) / kPartValues);
    return std::clamp(offset, -before_offset(part.least, factor),
                      255 - before_offset(part.most, factor));
}

// Writes a channel's values for 32 inputs, each from 0 to 15, into the lines of these inputs. The
// lines are zeros before.
void put_nibbles(const int8_t* values, int64_t channel, uint8_t* lines) {
    const int shift = channel < 16 ? 0 : 4;
    uint8_t* const place = lines + channel % 16 * 4;
    for (int64_t j = 0; j < kPartValues / 4; ++j) {
        uint32_t four, other;
        std::memcpy(&four, values + 4 * j, sizeof four);
        std::memcpy(&other, place + 64 * j, sizeof other);
        other |= four << shift;
        std::memcpy(place + 64 * j, &other, sizeof other);
    }
}

// Writes 128 inputs of channel `channel`, or the `num_parts` times 32 that exist, to a group.
void put_group(const ChannelPart* parts, int64_t num_parts, int64_t channel, uint8_t* group) {
    float largest_scale = 0.0f, magnitude = 0.0f;
    bool is_finite = true;
    for (int64_t i = 0; i < num_parts; ++i) {
        const float size = parts[i].magnitude();
        is_finite = is_finite && std::isfinite(size + parts[i].scales[0]);
        largest_scale = std::max(largest_scale, parts[i].scales[0]);
        magnitude = std::max(magnitude, size);
    }
    // A weight of 126 has a step left for the rounding of the offset.
    const float least = std::max(magnitude / 126.0f, largest_scale * (16.0f / 255.0f));
    const bool is_zero = is_finite && !(1.0f / least < std::numeric_limits<float>::infinity());
    const uint16_t stored = !is_finite ? 0x7fc0 : is_zero ? 0 : bfloat16_above(least);
    std::memcpy(group + 2 * channel, &stored, sizeof stored);
    uint8_t* const factors = group + 2 * kPanelChannels;
    uint8_t* const offsets = factors + kGroupParameters;
    uint8_t* const nibbles = offsets + kGroupParameters;
    const float inverse_scale = 1.0f / to_float(stored);
    for (int64_t i = 0; i < kGroupParts; ++i) {
        int factor = 0, offset = 128;
        if (i < num_parts && is_finite && !is_zero) {
            factor = nearest(parts[i].scales[0] * 16.0f * inverse_scale);
            offset = best_offset(parts[i], factor, inverse_scale);
            put_nibbles(parts[i].values, channel, nibbles + i * 512);
        }
        factors[i * kPanelChannels + channel] = static_cast<uint8_t>(factor);
        offsets[i * kPanelChannels + channel] = static_cast<uint8_t>(offset);
    }
}

template <class Rows>
void pack_groups(const Rows& rows, int64_t out_features, int64_t in_features, uint8_t* packed) {
    const int64_t bytes = panel_bytes(kGroups, (in_features + kBlock - 1) / kBlock);
    for_each_panel(out_features, [&](int64_t index) {
        uint8_t* const panel = packed + index * bytes;
        std::memset(panel, 0, bytes);
        const int64_t first = index * kPanelChannels;
        const int64_t last = std::min(out_features - first, kPanelChannels);
        for (int64_t c = 0; c < last; ++c) {
            for (int64_t k = 0; k < in_features; k += kGroupInputs) {
                ChannelPart parts[kGroupParts];
                int64_t num_parts = 0;
                for (; num_parts < kGroupParts; ++num_parts) {
                    const int64_t input = k + num_parts * kPartValues;
                    if (input >= in_features) break;
                    rows.read(first + c, input, parts[num_parts]);
                    parts[num_parts].complete();
                }
                put_group(parts, num_parts, c, panel + k / kGroupInputs * kGroupBytes);
            }
        }
    });
}

template <class Type>
void pack_floats(const void* weight, int64_t out_features, int64_t in_features, uint8_t* packed) {
    const FloatRows<Type> rows{static_cast<const typename Type::Value*>(weight), in_features};
    pack_groups(rows, out_features, in_features, packed);
}

}  // namespace
}  // namespace chatrpc

using namespace chatrpc;

void chatrpc_int4_pack(const void* weight, int32_t type, int64_t out_features, int64_t in_features,
                       uint8_t* packed) {
    switch (type) {
        case 1: return pack_floats<BFloat16>(weight, out_features, in_features, packed);
        case 2: return pack_floats<Float16>(weight, out_features, in_features, packed);
        default: return pack_floats<Float32>(weight, out_features, in_features, packed);
    }
}

void chatrpc_int4_pack_groups(const uint8_t* values, const float* scales, const float* minimums,
                              int64_t out_features, int64_t in_features, int64_t group_size,
                              uint8_t* packed) {
    pack_groups(GroupedRows{values, scales, minimums, in_features, group_size}, out_features,
                in_features, packed);
}

void chatrpc_int4_pack_blocks(const uint8_t* blocks, int32_t type, int64_t out_features,
                              int64_t in_features, uint8_t* packed) {
    with_block_rows(type, blocks, in_features, [&](const auto& rows) {
        pack_groups(rows, out_features, in_features, packed);
    });
}
