// Computes layers and attention with the kernels, and writes the results to the standard output as
// float32. test_emulated.py compares those of two architectures. The exit status is 1 if the
// self-test fails, and 2 if the bits of a row depend on the other rows of a call.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "attention.cpp"
#include "linear.h"

namespace {

// Numbers in [-1, 1), the same on every machine.
class Random {
  public:
    std::vector<float> floats(int64_t size) {
        std::vector<float> values(size);
        for (float& value : values) value = static_cast<float>(next() - 32768) / 32768.0f;
        return values;
    }
    int32_t next() {
        state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
        return static_cast<int32_t>(state_ >> 48);
    }

  private:
    uint64_t state_ = 1;
};

void write(const std::vector<float>& values) {
    std::fwrite(values.data(), sizeof(float), values.size(), stdout);
}

void check_equal(const float* part, const float* whole, int64_t size) {
    if (std::memcmp(part, whole, size * sizeof(float)) != 0) std::exit(2);
}

// The weights that a layer is packed from.
enum class Source { kFloatsInt8, kFloatsInt4, kGroups, kQ5_0, kQ4_1 };

// Random rows of blocks of 32 values. Each has a float16 number in its first and second two bytes.
std::vector<uint8_t> random_blocks(int64_t num_blocks, int64_t block_bytes, Random& random) {
    std::vector<uint8_t> blocks(num_blocks * block_bytes);
    for (uint8_t& byte : blocks) byte = static_cast<uint8_t>(random.next());
    for (int64_t b = 0; b < num_blocks; ++b) {
        for (const int64_t upper : {1, 3}) blocks[b * block_bytes + upper] &= 0xa7;  // below 0.04
    }
    return blocks;
}

void run_layer(Source source, int64_t n, int64_t k, Random& random) {
    constexpr int64_t kRows = 21;
    const int64_t panels = (n + 31) / 32, blocks = (k + 63) / 64;
    const bool is_int8 = source == Source::kFloatsInt8 || source == Source::kQ5_0;
    const int32_t format = is_int8 ? 0 : 1;
    const int64_t bytes = panels * (is_int8 ? blocks * 2048 : (blocks + 1) / 2 * 2368);
    auto* packed = static_cast<uint8_t*>(std::aligned_alloc(64, bytes));
    std::vector<float> scales(panels * 32);
    switch (source) {
        case Source::kFloatsInt8:
            chatrpc_linear_pack(random.floats(n * k).data(), 0, n, k, packed, scales.data());
            break;
        case Source::kFloatsInt4:
            chatrpc_int4_pack(random.floats(n * k).data(), 0, n, k, packed);
            break;
        case Source::kGroups: {
            std::vector<uint8_t> values(n * k / 2);
            for (uint8_t& value : values) value = static_cast<uint8_t>(random.next());
            const auto of_groups = random.floats(n * k / 32), minimums = random.floats(n * k / 32);
            chatrpc_int4_pack_groups(values.data(), of_groups.data(), minimums.data(), n, k, 32,
                                     packed);
            break;
        }
        case Source::kQ5_0:
            chatrpc_linear_pack_blocks(random_blocks(n * k / 32, 22, random).data(), 2, n, k,
                                       packed, scales.data());
            break;
        case Source::kQ4_1:
            chatrpc_int4_pack_blocks(random_blocks(n * k / 32, 20, random).data(), 1, n, k, packed);
    }
    const auto bias = random.floats(panels * 32), norm = random.floats(k);
    const chatrpc_linear_layer layer{n,           k,      packed, scales.data(),
                                     bias.data(), norm.data(), format, 0};
    const auto x = random.floats(kRows * 2 * k), residual = random.floats(kRows * n);
    for (int32_t prologue = 0; prologue < 4; ++prologue) {
        const int64_t width = prologue >= 2 ? 2 * k : k;
        std::vector<float> whole(kRows * n), part(kRows * n);
        chatrpc_linear(&layer, x.data(), kRows, prologue, 1e-5f, residual.data(), whole.data());
        for (int64_t size = 1; size < 6; ++size) {
            for (int64_t r = 0; r + size <= kRows; r += size) {
                chatrpc_linear(&layer, x.data() + r * width, size, prologue, 1e-5f,
                               residual.data() + r * n, part.data());
                check_equal(part.data(), whole.data() + r * n, size * n);
            }
        }
        write(whole);
    }
    std::free(packed);
}

// Computes a sequence at once and then token by token, in caches of its own.
void run_attention(int64_t dim, bool is_bf16, int64_t window, float softcap, Random& random) {
    constexpr int64_t kHeads = 6, kKvHeads = 2, kBlockSize = 32, kTokens = 70;
    const int64_t width = (kHeads + 2 * kKvHeads) * dim;
    const auto qkv = random.floats(kTokens * width), norms = random.floats(2 * dim);
    const int64_t half = dim / 4;  // half of the dimensions that are rotated
    const auto cos = random.floats(kTokens * half), sin = random.floats(kTokens * half);
    const int32_t blocks[] = {2, 0, 1};
    std::vector<float> results[2];
    for (std::vector<float>& result : results) {
        result.resize(kTokens * kHeads * dim);
        std::vector<float> cache(3 * kKvHeads * 2 * kBlockSize * dim);
        const chatrpc_attention_layer layer{cache.data(), nullptr, norms.data(), norms.data() + dim,
                                            kHeads, kKvHeads, dim, kBlockSize, window, 1e-6f,
                                            0.125f, softcap, is_bf16};
        const int32_t step = &result == results ? kTokens : 1;
        for (int32_t first = 0; first < kTokens; first += step) {
            const int32_t rows[] = {0, step}, length = first + step, table = 0;
            const chatrpc_attention_plan plan{rows, &length, &table, blocks, 1, 2};
            const chatrpc_attention_rotary rotary{cos.data() + first * half,
                                                  sin.data() + first * half, 2 * half};
            chatrpc_attend(&layer, &plan, &rotary, qkv.data() + first * width,
                           result.data() + first * kHeads * dim);
        }
    }
    check_equal(results[1].data(), results[0].data(), static_cast<int64_t>(results[0].size()));
    write(results[0]);
}

}  // namespace

int main() {
    if (chatrpc_linear_self_test() != 0) return 1;
    Random random;
    for (const Source source : {Source::kFloatsInt8, Source::kFloatsInt4, Source::kGroups,
                                Source::kQ5_0, Source::kQ4_1}) {
        run_layer(source, 70, 160, random);
    }
    run_layer(Source::kFloatsInt8, 33, 65, random);
    run_layer(Source::kFloatsInt4, 33, 65, random);
    for (const int64_t dim : {16, 80, 256}) {
        run_attention(dim, false, 0, 0.0f, random);
        run_attention(dim, true, 40, 0.0f, random);
        run_attention(dim, true, 0, 2.0f, random);
    }
    return 0;
}
