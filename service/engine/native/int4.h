// Weights of 4 bits. They are expanded to the int8 of product.h, panel by panel or in registers, and
// multiplied as such. So each product of them is exact, with the same bits on every path.
//
// In the format kGroups, 128 inputs of a panel are together. First come their bfloat16 scales, one for
// each channel; then for each 32 inputs a byte `factor` for each channel, then as many bytes `offset`;
// then for each 64 inputs 16 lines of 64 bytes. The lower four bits of line j are line j of the panel's
// first tile (linear.h), the upper four bits that of its second tile. Such a value q, from 0 to 15, is
// the int8 weight v, with 128 added:
//
//     v = q * (factor >> 4) + (q * (factor & 15) >> 4) + offset
//
// All arithmetic is modulo 256. No partial product exceeds 255. Activations have a scale for each 128
// inputs too. Inputs are not rotated, so weights of 4 bits that another program chose, as those of a
// GGUF file, keep their values.

#pragma once

#include <cstdint>
#include <cstring>

#include "product.h"

namespace chatrpc {

enum Format : int32_t { kInt8 = 0, kGroups = 1 };

constexpr int64_t kNibbleBytes = 1024;                      // a panel's 64 inputs without parameters
constexpr int64_t kScaledInputs = 32;                       // inputs that share a parameter
constexpr int64_t kGroupBlocks = 2;                         // blocks of 64 inputs in a group
constexpr int64_t kGroupParameters = 4 * kPanelChannels;    // bytes of factors, and of offsets
constexpr int64_t kGroupBytes =
    2 * kPanelChannels + 2 * kGroupParameters + kGroupBlocks * kNibbleBytes;

inline int64_t num_groups(int64_t num_blocks) {
    return (num_blocks + kGroupBlocks - 1) / kGroupBlocks;
}

inline int64_t panel_bytes(int32_t format, int64_t num_blocks) {
    return format == kGroups ? num_groups(num_blocks) * kGroupBytes
                             : num_blocks * kPanelBlockBytes;
}

}  // namespace chatrpc

#if defined(CHATRPC_AVX512)
#include "int4_avx512.h"
#else

namespace chatrpc {

// The expansion of 16 channels' weights with the parameters of 32 inputs. Two bytes are multiplied as
// one word: no product of the lower byte exceeds 255, so it has no carry.
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
inline void expand_lines(const ExpandGroup& first, const ExpandGroup& second, const uint8_t* nibbles,
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

// Converts the 32 scales of a group to floats.
inline void read_scales(const uint8_t* group, float* scales) {
    const auto* const stored = reinterpret_cast<const uint16_t*>(group);
    store(scales, load_bf16(stored));
    store(scales + 16, load_bf16(stored + 16));
}

// Expands `num_blocks` blocks of a group.
inline void expand_group(const uint8_t* group, int64_t num_blocks, uint8_t* panel) {
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
