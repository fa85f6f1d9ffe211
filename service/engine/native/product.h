// The integer products of a linear layer: one panel of 32 output channels against rows of int8.
//
// Integer sums do not depend on their order, so all instruction sets give the same bits; what a
// sum becomes in floats is written once, in `Finish`.

#pragma once

#include <cstdint>
#include <cstring>

#include "linear.h"
#include "quantize.h"
#include "simd.h"

namespace chatrpc {

constexpr int64_t kPanelChannels = 32;
constexpr int64_t kPanelBlockBytes = 2 * kTileBytes;  // a panel's 64 inputs

// The output of a panel, and the parameters that `finish` needs to compute it.
struct Output {
    const float* scales;    // 32, one for each channel of the panel
    const float* bias;      // 32, one for each channel of the panel
    const float* residual;  // address of row 0 at the panel's first channel; or null
    float* out;             // address of row 0 at the panel's first channel
    int64_t stride;
    Mask mask[2];           // the panel's channels that exist
    bool is_added = false;  // add to `out`, without the bias and the residual
};

// The sum of a row's products with weights, from the sum with 128 added to each weight, as they are
// stored.
inline Ints without_bias(Ints sum, const RowScale& of_row) {
    return sum - broadcast(of_row.compensation);
}

// Computes outputs of 16 of the panel's channels. Values that all rows share are in registers.
class Finish {
  public:
    Finish(const Output& output, int half)
        : scales_(load(output.scales + 16 * half)),
          bias_(load(output.bias + 16 * half)),
          residual_(output.residual == nullptr ? nullptr : output.residual + 16 * half),
          out_(output.out + 16 * half),
          stride_(output.stride),
          mask_(output.mask[half]),
          is_added_(output.is_added) {}

    void operator()(int64_t row, const RowScale& of_row, Ints sum) const {
        const Floats scale = broadcast(of_row.scale) * scales_;
        // The fused operation rounds once. If the compiler could choose to fuse or not, the bits
        // would depend on the path.
        float* const out = out_ + row * stride_;
        Floats y = fma(to_floats(sum), scale, is_added_ ? load(out, mask_) : bias_);
        if (residual_ != nullptr) y = y + load(residual_ + row * stride_, mask_);
        store(out, mask_, y);
    }

  private:
    Floats scales_, bias_;
    const float* residual_;
    float* out_;
    int64_t stride_;
    Mask mask_;
    bool is_added_;
};

// The distance at which weights are fetched before their use. Without this, one core has too few
// memory reads in progress.
constexpr int64_t kPrefetchBytes = 4096;

}  // namespace chatrpc
