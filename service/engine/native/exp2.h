// Powers of two of the vectors of simd.h.

#pragma once

#include "simd.h"

namespace chatrpc {

// 2^x for x <= 0, with a relative error of 1.4e-7, or of 8.6e-5 for results that are rounded to
// bfloat16, whose error is 2e-3. The polynomials are fitted to 2^f over [0, 1) for the least
// relative error, with 2^0 = 1 exactly.
template <bool kFine>
inline Floats exp2(Floats x) {
    const Floats f = fraction(x);
    Floats p;
    if constexpr (kFine) {
        p = broadcast(1.867146697e-3f);
        p = fma(p, f, broadcast(9.016995318e-3f));
        p = fma(p, f, broadcast(5.579993874e-2f));
        p = fma(p, f, broadcast(2.401644439e-1f));
        p = fma(p, f, broadcast(6.931512952e-1f));
    } else {
        p = broadcast(7.706706226e-2f);
        p = fma(p, f, broadcast(2.276449800e-1f));
        p = fma(p, f, broadcast(6.951168180e-1f));
    }
    p = fma(p, f, broadcast(1.0f));
    return times_power(p, x);
}

}  // namespace chatrpc
