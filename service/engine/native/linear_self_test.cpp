// Checks small known products on every path, so that a wrongly compiled library is not used.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "int4.h"
#include "linear.h"
#include "quantize.h"

using namespace chatrpc;

namespace {

constexpr int64_t kOut = 37, kIn = 164, kPaddedIn = 192, kRows = 35;
constexpr int64_t kPanels = 2, kBlocks = kPaddedIn / 64;
constexpr float kEps = 1e-5f;

class Random {
  public:
    int32_t below(int32_t bound) {
        state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
        return static_cast<int32_t>((state_ >> 33) % static_cast<uint64_t>(bound));
    }
    float unit() { return static_cast<float>(below(20001) - 10000) / 10000.0f; }

  private:
    uint64_t state_ = 1;
};

double hadamard_entry(int64_t i, int64_t j) {
    return (__builtin_popcountll(static_cast<uint64_t>(i & j)) % 2 == 0 ? 1.0 : -1.0) / 8.0;
}

double gate(int32_t prologue, double x) {
    if (prologue == kSiluGate) return x / (1.0 + std::exp(-x));
    return 0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

std::vector<double> prologue_of(int32_t prologue, const float* x, const float* norm) {
    std::vector<double> z(kIn);
    double squares = 0;
    for (int64_t k = 0; k < kIn; ++k) squares += static_cast<double>(x[k]) * x[k];
    for (int64_t k = 0; k < kIn; ++k) {
        z[k] = x[k];
        if (prologue == kRmsNorm) z[k] *= norm[k] / std::sqrt(squares / kIn + kEps);
        if (prologue == kSiluGate || prologue == kGeluTanhGate) {
            z[k] = gate(prologue, x[k]) * x[kIn + k];
        }
    }
    return z;
}

// Random weights in one of the formats of linear.h.
struct Weights {
    alignas(64) uint8_t packed[kPanels * 32 * kPaddedIn] = {};
    std::vector<double> values;  // [kOut, kIn] without the channel's scale, before a rotation
    std::vector<float> scales;   // of the channels

    Weights(int32_t format, Random& random) : values(kOut * kIn), scales(kPanels * 32, 1.0f) {
        std::vector<double> stored(kOut * kPaddedIn);
        for (auto& byte : packed) byte = static_cast<uint8_t>(random.below(256));
        if (format == kGroups) {
            for (int64_t panel = 0; panel < kPanels; ++panel) {
                for (int64_t g = 0; g < num_groups(kBlocks); ++g) {
                    for (int64_t c = 0; c < 32; ++c) set_scale(panel, g, c, random.below(256));
                }
            }
        } else {
            for (auto& scale : scales) scale = 0.01f + 0.001f * random.unit();
        }
        for (int64_t n = 0; n < kOut; ++n) {
            for (int64_t k = 0; k < kPaddedIn; ++k) {
                stored[n * kPaddedIn + k] =
                    format == kInt8 ? int8_weight(n, k) : group_weight(n, k);
            }
            for (int64_t k = 0; k < kIn; ++k) {
                double& value = values[n * kIn + k];
                if (format == kGroups) {
                    value = stored[n * kPaddedIn + k];
                    continue;
                }
                for (int64_t j = 0; j < 64; ++j) {  // the rotation is its own inverse
                    value += hadamard_entry(k % 64, j) * stored[n * kPaddedIn + k / 64 * 64 + j];
                }
            }
        }
    }

  private:
    static int without_128(int v) { return (v & 255) - 128; }

    int int8_weight(int64_t n, int64_t k) {
        const int64_t tile = (n / 32 * kBlocks + k / 64) * 2 + n % 32 / 16;
        uint8_t& v = packed[tile * 1024 + k % 64 / 4 * 64 + n % 16 * 4 + k % 4];
        if (v == 0) v = 1;  // -128 is not an int8 weight
        return without_128(v);
    }
    static int nibble(const uint8_t* lines, int64_t n, int64_t k) {
        return lines[k / 4 * 64 + n % 16 * 4 + k % 4] >> (n % 32 / 16 * 4) & 15;
    }
    uint8_t* group(int64_t panel, int64_t g) {
        return packed + (panel * num_groups(kBlocks) + g) * kGroupBytes;
    }
    void set_scale(int64_t panel, int64_t g, int64_t c, int mantissa) {
        group(panel, g)[2 * c] = static_cast<uint8_t>(mantissa);
        group(panel, g)[2 * c + 1] = 0x3c;  // 2^-7 to 2^-5
    }
    double group_weight(int64_t n, int64_t k) {
        const uint8_t* const at = group(n / 32, k / 128);
        const uint32_t bits = static_cast<uint32_t>(at[n % 32 * 2] | at[n % 32 * 2 + 1] << 8) << 16;
        float scale;
        std::memcpy(&scale, &bits, sizeof scale);
        const uint8_t* const factors = at + 64;
        const int64_t place = k % 128 / 32 * 32 + n % 32;
        const int factor = factors[place], offset = factors[128 + place];
        const int q = nibble(factors + 256, n, k % 128);
        const int v = q * (factor >> 4) + (q * (factor & 15) >> 4) + offset;
        return static_cast<double>(scale) * without_128(v);
    }
};

// Returns 0 if all paths are correct, else the number of the first wrong check of this format.
int32_t check_format(int32_t format) {
    Random random;
    const Weights weights(format, random);
    std::vector<float> bias(kPanels * 32), norm(kIn), x(kRows * 2 * kIn), residual(kRows * kOut);
    for (auto& value : bias) value = random.unit();
    for (auto& value : norm) value = 1.0f + random.unit();
    for (auto& value : x) value = 3.0f * random.unit();
    for (auto& value : residual) value = random.unit();

    const int32_t last_path = chatrpc_linear_has_amx() != 0 ? 2 : 1;
    int32_t check = 0;
    for (int32_t prologue = kNone; prologue <= kGeluTanhGate; ++prologue) {
        std::vector<double> exact(kRows * kOut), bound(kRows);
        for (int64_t r = 0; r < kRows; ++r) {
            const auto z = prologue_of(
                prologue, x.data() + r * (prologue >= kSiluGate ? 2 : 1) * kIn, norm.data());
            // Errors of up to half a step of int8 (2 * the largest / 127 once the transform has mixed
            // the values) add up over the inputs like random ones, not like their worst case.
            for (const double value : z) bound[r] = std::max(bound[r], std::abs(value));
            for (int64_t n = 0; n < kOut; ++n) {
                double& y = exact[r * kOut + n];
                for (int64_t k = 0; k < kIn; ++k) y += z[k] * weights.values[n * kIn + k];
                y = y * weights.scales[n] + bias[n] + residual[r * kOut + n];
            }
        }
        std::vector<float> first;  // what the first path gave for all rows: the same bits always
        for (int32_t path = 1; path <= last_path; ++path) {
            const chatrpc_linear_layer layer{
                kOut, kIn, weights.packed, weights.scales.data(), bias.data(), norm.data(),
                format, path};
            for (const int64_t rows : {kRows, int64_t{16}, int64_t{7}, int64_t{2}, int64_t{1}}) {
                ++check;
                std::vector<float> y(rows * kOut);
                chatrpc_linear(&layer, x.data(), rows, prologue, kEps, residual.data(), y.data());
                if (first.empty()) first = y;
                if (!std::equal(y.begin(), y.end(), first.begin())) return check;
                for (int64_t i = 0; i < rows * kOut; ++i) {
                    if (!(std::abs(y[i] - exact[i]) < bound[i / kOut])) return check;
                }
            }
        }
    }
    return 0;
}

}  // namespace

int32_t chatrpc_linear_self_test() {
    for (const int32_t format : {kInt8, kGroups}) {
        const int32_t failed = check_format(format);
        if (failed != 0) return 100 * format + failed;
    }
    return 0;
}
