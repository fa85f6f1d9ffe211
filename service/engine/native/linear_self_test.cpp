// Checks small known products on every path, so that a wrongly compiled library is not used.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "linear.h"
#include "quantize.h"

using namespace chatrpc;

namespace {

constexpr int64_t kOut = 37, kIn = 100, kPaddedIn = 128, kRows = 35;
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

}  // namespace

int32_t chatrpc_linear_self_test() {
    Random random;
    alignas(64) static uint8_t packed[2 * 32 * kPaddedIn];
    std::vector<double> weight(kOut * kIn);  // before the rotation: H is its own inverse
    std::vector<int32_t> rotated(kOut * kPaddedIn);
    std::fill(std::begin(packed), std::end(packed), uint8_t{128});
    for (int64_t n = 0; n < kOut; ++n) {
        for (int64_t k = 0; k < kPaddedIn; ++k) {
            rotated[n * kPaddedIn + k] = random.below(255) - 127;
            const int64_t tile = (n / 32 * (kPaddedIn / 64) + k / 64) * 2 + n % 32 / 16;
            packed[tile * 1024 + k % 64 / 4 * 64 + n % 16 * 4 + k % 4] =
                static_cast<uint8_t>(rotated[n * kPaddedIn + k] + 128);
        }
        for (int64_t k = 0; k < kIn; ++k) {
            for (int64_t j = 0; j < 64; ++j) {
                weight[n * kIn + k] +=
                    hadamard_entry(k % 64, j) * rotated[n * kPaddedIn + k / 64 * 64 + j];
            }
        }
    }
    std::vector<float> scales(64), bias(64), norm(kIn), x(kRows * 2 * kIn), residual(kRows * kOut);
    for (auto& value : scales) value = 0.01f + 0.001f * random.unit();
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
            // the values) add up over 128 inputs like random ones, not like their worst case.
            for (const double value : z) bound[r] = std::max(bound[r], 0.5 * std::abs(value));
            for (int64_t n = 0; n < kOut; ++n) {
                double& y = exact[r * kOut + n];
                for (int64_t k = 0; k < kIn; ++k) y += z[k] * weight[n * kIn + k];
                y = y * scales[n] + bias[n] + residual[r * kOut + n];
            }
        }
        std::vector<float> first;  // what the first path gave for all rows: the same bits always
        for (int32_t path = 1; path <= last_path; ++path) {
            const chatrpc_linear_layer layer{
                kOut, kIn, packed, scales.data(), bias.data(), norm.data(), path};
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
