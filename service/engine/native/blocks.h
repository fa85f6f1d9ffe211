// The blocks of GGUF's quantized types, as of ggml:
// https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
//
// A row of a weight is a sequence of blocks of `kValues` values in `kBytes` bytes.

#pragma once

#include <cstdint>
#include <cstring>

namespace chatrpc {

constexpr int64_t kPartValues = 32;

// 32 adjacent weights of a row. Weight k is values[k] * scales[k / 16] - minimum.
struct Part {
    int8_t values[kPartValues];
    float scales[2];
    float minimum;
};

inline float read_half(const uint8_t* bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, sizeof half);
    uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;  // the difference of the exponents' biases
    std::memcpy(&bits, &value, sizeof value);
    if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000;  // infinity or NaN
    bits |= static_cast<uint32_t>(half & 0x8000) << 16;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Reads the four lower bits of 16 bytes, then their four upper bits.
inline void read_nibbles(const uint8_t* bytes, int8_t* values) {
    for (int k = 0; k < 16; ++k) {
        values[k] = static_cast<int8_t>(bytes[k] & 15);
        values[16 + k] = static_cast<int8_t>(bytes[k] >> 4);
    }
}

// Reads the four lower bits of 32 bytes, or the four upper ones.
inline void read_nibbles_of(const uint8_t* bytes, bool is_upper, int8_t* values) {
    if (is_upper) {
        for (int k = 0; k < 32; ++k) values[k] = static_cast<int8_t>(bytes[k] >> 4);
    } else {
        for (int k = 0; k < 32; ++k) values[k] = static_cast<int8_t>(bytes[k] & 15);
    }
}

// Adds 16 to each value whose bit is 1.
inline void add_fifth_bits(const uint8_t* bytes, int8_t* values) {
    for (int k = 0; k < 32; ++k) {
        values[k] = static_cast<int8_t>(values[k] | (bytes[k / 8] >> k % 8 & 1) << 4);
    }
}

struct Q4_0 {
    static constexpr int64_t kValues = 32, kBytes = 18;
    static void read(const uint8_t* block, int64_t, Part& part) {
        const float scale = read_half(block);
        read_nibbles(block + 2, part.values);
        part.scales[0] = part.scales[1] = scale;
        part.minimum = 8.0f * scale;
    }
};

struct Q4_1 {
    static constexpr int64_t kValues = 32, kBytes = 20;
    static void read(const uint8_t* block, int64_t, Part& part) {
        read_nibbles(block + 4, part.values);
        part.scales[0] = part.scales[1] = read_half(block);
        part.minimum = -read_half(block + 2);
    }
};

struct Q5_0 {
    static constexpr int64_t kValues = 32, kBytes = 22;
    static void read(const uint8_t* block, int64_t, Part& part) {
        const float scale = read_half(block);
        read_nibbles(block + 6, part.values);
        add_fifth_bits(block + 2, part.values);
        part.scales[0] = part.scales[1] = scale;
        part.minimum = 16.0f * scale;
    }
};

struct Q5_1 {
    static constexpr int64_t kValues = 32, kBytes = 24;
    static void read(const uint8_t* block, int64_t, Part& part) {
        read_nibbles(block + 8, part.values);
        add_fifth_bits(block + 4, part.values);
        part.scales[0] = part.scales[1] = read_half(block);
        part.minimum = -read_half(block + 2);
    }
};

struct Q8_0 {
    static constexpr int64_t kValues = 32, kBytes = 34;
    static void read(const uint8_t* block, int64_t, Part& part) {
        std::memcpy(part.values, block + 2, sizeof part.values);
        part.scales[0] = part.scales[1] = read_half(block);
        part.minimum = 0.0f;
    }
};

// Reads the scale and the minimum of part `i` of a block in Q4_K or Q5_K. The eight scales and the
// eight minimums have 6 bits each, in 12 bytes.
inline void read_scales_of_k(const uint8_t* block, int64_t i, Part& part) {
    const uint8_t* const packed = block + 4;
    int scale = packed[i] & 63, minimum = packed[i + 4] & 63;
    if (i >= 4) {
        scale = (packed[i + 4] & 15) | packed[i - 4] >> 6 << 4;
        minimum = packed[i + 4] >> 4 | packed[i] >> 6 << 4;
    }
    part.scales[0] = part.scales[1] = read_half(block) * static_cast<float>(scale);
    part.minimum = read_half(block + 2) * static_cast<float>(minimum);
}

struct Q4_K {
    static constexpr int64_t kValues = 256, kBytes = 144;
    static void read(const uint8_t* block, int64_t i, Part& part) {
        read_nibbles_of(block + 16 + i / 2 * 32, i % 2 != 0, part.values);
        read_scales_of_k(block, i, part);
    }
};

struct Q5_K {
    static constexpr int64_t kValues = 256, kBytes = 176;
    static void read(const uint8_t* block, int64_t i, Part& part) {
        read_nibbles_of(block + 48 + i / 2 * 32, i % 2 != 0, part.values);
        for (int k = 0; k < 32; ++k) {
            part.values[k] = static_cast<int8_t>(part.values[k] | (block[16 + k] >> i & 1) << 4);
        }
        read_scales_of_k(block, i, part);
    }
};

struct Q6_K {
    static constexpr int64_t kValues = 256, kBytes = 210;
    static void read(const uint8_t* block, int64_t i, Part& part) {
        // Each half of a block has the four lower bits of its 128 values in 64 bytes, and their two
        // upper bits in 32 bytes.
        read_nibbles_of(block + i / 4 * 64 + i % 2 * 32, i % 4 >= 2, part.values);
        const uint8_t* const upper = block + 128 + i / 4 * 32;
        const int shift = static_cast<int>(i % 4 * 2);
        for (int k = 0; k < 32; ++k) {
            part.values[k] =
                static_cast<int8_t>((part.values[k] | (upper[k] >> shift & 3) << 4) - 32);
        }
        const float scale = read_half(block + 208);
        for (int half = 0; half < 2; ++half) {
            part.scales[half] =
                scale * static_cast<float>(static_cast<int8_t>(block[192 + 2 * i + half]));
        }
        part.minimum = 0.0f;
    }
};

// The rows of a weight in blocks.
template <class Block>
struct BlockRows {
    const uint8_t* rows;
    int64_t row_bytes;

    BlockRows(const uint8_t* first, int64_t in_features)
        : rows(first), row_bytes(in_features / Block::kValues * Block::kBytes) {}

    // Reads 32 weights of row `n` from input `k` on, a multiple of 32.
    void read(int64_t n, int64_t k, Part& part) const {
        const uint8_t* const block = rows + n * row_bytes + k / Block::kValues * Block::kBytes;
        Block::read(block, k % Block::kValues / kPartValues, part);
    }
};

// Calls `use` with the BlockRows of a type: 0 to 7 are Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K.
template <class Use>
void with_block_rows(int32_t type, const uint8_t* rows, int64_t in_features, Use use) {
    switch (type) {
        case 0: return use(BlockRows<Q4_0>(rows, in_features));
        case 1: return use(BlockRows<Q4_1>(rows, in_features));
        case 2: return use(BlockRows<Q5_0>(rows, in_features));
        case 3: return use(BlockRows<Q5_1>(rows, in_features));
        case 4: return use(BlockRows<Q8_0>(rows, in_features));
        case 5: return use(BlockRows<Q4_K>(rows, in_features));
        case 6: return use(BlockRows<Q5_K>(rows, in_features));
        default: return use(BlockRows<Q6_K>(rows, in_features));
    }
}

}  // namespace chatrpc
