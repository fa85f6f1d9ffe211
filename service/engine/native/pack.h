// What the conversions of weights to packed panels share.

#pragma once

#include <omp.h>

#include <cstdint>

#include "product.h"
#include "threads.h"

namespace chatrpc {

// Calls `pack_panel(index)` for all panels of a weight, on all threads.
template <class PackPanel>
void for_each_panel(int64_t out_features, PackPanel pack_panel) {
    const int64_t num_panels = (out_features + kPanelChannels - 1) / kPanelChannels;
    in_parallel(omp_get_max_threads(), num_panels, 1, 1, [&](int thread, Parts& panels) {
        for (int64_t p, last; panels.take(thread, p, last);) {
            for (; p < last; ++p) pack_panel(p);
        }
    });
}

}  // namespace chatrpc
