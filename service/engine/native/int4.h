// Weights of 4 bits. They are expanded to the int8 of product.h, panel by panel or in registers, and
// multiplied as such. So each product of them is exact, with the same bits on every path.
//
// There are two formats. Both have, for every 64 inputs of a panel, 16 lines of 64 bytes. The lower
// four bits of line j are line j of the panel's first tile (linear.h), the upper four bits that of
// its second tile. q below is such a value, from 0 to 15, and v the int8 weight with 128 added.
//
// kInt4: for 64 inputs, 64 bytes of parameters come first: those of the 32 channels for the first
// 32 inputs, then for the others. A parameter has s - 1 in its lower and z in its upper four bits:
//
//     v = (q - z) * s + 128
//
// Channels have a float scale and groups of 32 a whole one (QoQ, arXiv 2405.04532). Inputs are
// rotated as in int8.
//
// kGroups: 128 inputs are together. First come their bfloat16 scales, one for each channel; then for
// each 32 inputs a byte `factor` for each channel, then as many bytes `offset`:
//
//     v = q * (factor >> 4) + (q * (factor & 15) >> 4) + offset
//
// Activations have a scale for each 128 inputs too. This format takes weights whose scales another
// program chose, as those of a GGUF file. Inputs are not rotated.
//
// All arithmetic is modulo 256. No partial product exceeds 255.

#pragma once

#include <cstdint>
#include <cstring>

#include "product.h"

namespace chatrpc {

enum Format : int32_t { kInt8 = 0, kInt4 = 1, kGroups = 2 };

constexpr int64_t kNibbleBytes = 1024;                      // a panel's 64 inputs without parameters
constexpr int64_t kScaledInputs = 32;                       // inputs that share a parameter
constexpr int64_t kInt4BlockBytes = 64 + kNibbleBytes;      // a panel's 64 inputs
constexpr int64_t kGroupBlocks = 2;                         // blocks of 64 inputs in a group
constexpr int64_t kGroupParameters = 4 * kPanelChannels;    // bytes of factors, and of offsets
constexpr int64_t kGroupBytes =
    2 * kPanelChannels + 2 * kGroupParameters + kGroupBlocks * kNibbleBytes;

inline int64_t num_groups(int64_t num_blocks) {
    return (num_blocks + kGroupBlocks - 1) / kGroupBlocks;
}

inline int64_t panel_bytes(int32_t format, int64_t num_blocks) {
    switch (format) {
        case kInt4: return num_blocks * kInt4BlockBytes;
        case kGroups: return num_groups(num_blocks) * kGroupBytes;
        default: return num_blocks * kPanelBlockBytes;
    }
}

}  // namespace chatrpc

#if defined(CHATRPC_AVX512)
#include "int4_avx512.h"
#else

namespace chatrpc {

// The expansion of 16 channels' weights with the parameters of 32 inputs. Two bytes are multiplied as
// one word: no product of the lower byte exceeds 255, so it has no carry.
class ExpandInt4 {
  public:
    explicit ExpandInt4(const uint8_t* parameters) {
        const Bytes all = each_four_times(parameters);
        factors_ = low_bytes(add(lower_nibbles(all), broadcast_bytes(1)));
        offsets_ = subtract(broadcast_bytes(-128), multiply_words(upper_nibbles(all), factors_));
    }
    Bytes operator()(Bytes nibbles) const {
        return add(multiply_words(nibbles, factors_), offsets_);
    }

  private:
    Bytes factors_, offsets_;
};

class ExpandGroup {
  public:
    ExpandGroup(const uint8_t* factors, const uint8_t* offsets)
        : whole_(low_bytes(upper_nibbles(each_four_times(factors)))),
          sixteenths_(low_bytes(lower_nibbles(each_four_times(factors)))),
          offsets_(each_four_times(offsets)) {}
    Bytes operator()(Bytes nibbles) const {
        const Bytes part = upper_nibbles(multiply_words(nibbles, sixteenths_));
        return add(add(multiply_words(nibbles, whole_), part), offsets_);
    }

  private:
    Bytes whole_, sixteenths_, offsets_;
};

// Expands the lines of 32 inputs into the lines of a panel's two tiles.
template <class Expand>
inline void expand_lines(const Expand& first, const Expand& second, const uint8_t* nibbles,
                         uint8_t* lines) {
    for (int j = 0; j < 8; ++j, nibbles += 64, lines += 64) {
        __builtin_prefetch(nibbles + kPrefetchBytes, 0, 3);
        const Bytes both = load_bytes(nibbles);
        store(reinterpret_cast<int8_t*>(lines), first(lower_nibbles(both)));
        store(reinterpret_cast<int8_t*>(lines + kTileBytes), second(upper_nibbles(both)));
    }
}

}  // namespace chatrpc

#endif

namespace chatrpc {

// Expands `num_blocks` blocks of a panel in the format kInt4.
inline void expand_int4(const uint8_t* weights, int64_t num_blocks, uint8_t* panel) {
    for (int64_t b = 0; b < num_blocks; ++b) {
        const uint8_t* const block = weights + b * kInt4BlockBytes;
        uint8_t* const lines = panel + b * kPanelBlockBytes;
        for (int half = 0; half < 2; ++half) {
            const uint8_t* const parameters = block + half * kPanelChannels;
            expand_lines(ExpandInt4(parameters), ExpandInt4(parameters + 16),
                         block + 64 + half * 512, lines + half * 512);
        }
    }
}

// Expands `num_blocks` blocks of one group in the format kGroups, and its 32 scales.
inline void expand_group(const uint8_t* group, int64_t num_blocks, uint8_t* panel, float* scales) {
    const auto* const stored = reinterpret_cast<const uint16_t*>(group);
    store(scales, load_bf16(stored));
    store(scales + 16, load_bf16(stored + 16));
    const uint8_t* const factors = group + 2 * kPanelChannels;
    const uint8_t* const offsets = factors + kGroupParameters;
    const uint8_t* const nibbles = offsets + kGroupParameters;
    for (int64_t i = 0; i < 2 * num_blocks; ++i) {
        const uint8_t* const factor = factors + i * kPanelChannels;
        const uint8_t* const offset = offsets + i * kPanelChannels;
        expand_lines(ExpandGroup(factor, offset), ExpandGroup(factor + 16, offset + 16),
                     nibbles + i * 512, panel + i / 2 * kPanelBlockBytes + i % 2 * 512);
    }
}

}  // namespace chatrpc
