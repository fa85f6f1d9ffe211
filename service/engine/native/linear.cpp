#include "linear.h"

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "product.h"
#include "quantize.h"
#include "threads.h"

#if defined(CHATRPC_AVX512)
#include "product_avx512.h"
#elif defined(CHATRPC_AVX2)
#include "product_avx2.h"
#else
#include "product_neon.h"
#endif

namespace chatrpc {
namespace {

// A call's rows are computed in chunks of at most this many rows, and at most this many bytes in
// int8, which is half of a core's cache.
constexpr int64_t kMaxRows = 512;
constexpr int64_t kMaxActivationBytes = 1 << 20;
// This many rows of a chunk (a multiple of 32) are multiplied with all of a thread's weights before
// the next ones, if these weights fit into the cache. Measured: 64 and 256 are slower.
constexpr int64_t kRowsAtOnce = 128;
constexpr int64_t kMaxCachedWeightBytes = 1 << 20;
// Number of bytes of weights that are fetched while rows are quantized. They fit into a core's
// cache together with the rows.
constexpr int64_t kMaxFetchedWeightBytes = 1 << 19;
// With fewer rows, VNNI and AMX are both limited by memory, and VNNI needs less setup. Measured with
// weights that are not in the cache.
constexpr int64_t kFewestRowsForAmx = 9;
// Number of parts that each thread's share is divided into, and the minimum size of a part.
constexpr int64_t kPartsPerThread = 8;
constexpr int64_t kLeastPartBytes = 1 << 15;

bool request_amx() {
#ifdef __AMX_INT8__
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

bool has_amx() {
    static const bool granted = request_amx();
    return granted;
}

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};

// Memory that a thread keeps between calls, because a step makes a hundred calls.
template <int>
char* kept_space(int64_t size) {
    thread_local std::unique_ptr<char, Free> memory;
    thread_local int64_t capacity = 0;
    if (capacity < size) {
        capacity = round_up(size, 4096);
        memory.reset(static_cast<char*>(std::aligned_alloc(4096, capacity)));
    }
    return memory.get();
}

// The rows of a chunk in int8, tile by tile, and the parameters of each row.
struct Activations {
    RowScale* scales;
    int8_t* tiles;
    int64_t tile_stride;

    static int64_t bytes(int64_t rows, int64_t num_blocks) {
        return round_up(rows * static_cast<int64_t>(sizeof(RowScale)), 64) +
               round_up(rows, 2 * kTileRows) / kTileRows * num_blocks * kTileBytes;
    }
    Activations(char* space, int64_t rows, int64_t num_blocks)
        : scales(reinterpret_cast<RowScale*>(space)),
          tiles(reinterpret_cast<int8_t*>(
              space + round_up(rows * static_cast<int64_t>(sizeof(RowScale)), 64))),
          tile_stride(num_blocks * kTileBytes) {}
    int8_t* row(int64_t r) const {
        return tiles + r / kTileRows * tile_stride + r % kTileRows * 64;
    }
};

struct Call {
    const chatrpc_linear_layer& layer;
    const float* x;
    int64_t rows;
    QuantizeRow quantize;
    int64_t row_width;
    float eps;
    const float* residual;
    float* out;
    bool uses_amx;
    int64_t num_blocks;
    int64_t num_panels;
};

void quantize_rows(const Call& call, const Activations& activations, int64_t first, int64_t last,
                   Fetch fetch) {
    const int64_t size = call.layer.in_features;
    auto* space = reinterpret_cast<float*>(kept_space<0>(call.num_blocks * kBlock * 4));
    for (int64_t r = first; r < last; ++r) {
        activations.scales[r] = call.quantize(call.x + r * call.row_width, call.layer.norm, size,
                                              call.eps, space, activations.row(r), fetch);
    }
}

template <class Product>
void multiply_panels(const Call& call, const Activations& activations, int64_t first_panel,
                     int64_t last_panel) {
    const chatrpc_linear_layer& layer = call.layer;
    const int64_t panel_bytes = call.num_blocks * kPanelBlockBytes;
    const bool is_cached = (last_panel - first_panel) * panel_bytes <= kMaxCachedWeightBytes;
    const int64_t step = is_cached ? kRowsAtOnce : call.rows;
    const Product product;
    for (int64_t first = 0; first < call.rows; first += step) {
        const int64_t rows = std::min(step, call.rows - first);
        for (int64_t p = first_panel; p < last_panel; ++p) {
            const int64_t channel = p * kPanelChannels;
            const int64_t place = first * layer.out_features + channel;
            const int64_t left = std::min(layer.out_features - channel, kPanelChannels);
            const uint32_t mask = left == kPanelChannels ? ~0u : (1u << left) - 1;
            const Output output{
                layer.scales + channel,
                layer.bias + channel,
                call.residual == nullptr ? nullptr : call.residual + place,
                call.out + place,
                layer.out_features,
                {static_cast<Mask>(mask), static_cast<Mask>(mask >> 16)},
            };
            product(layer.weights + p * panel_bytes,
                    activations.tiles + first / kTileRows * activations.tile_stride,
                    activations.tile_stride, rows, call.num_blocks, activations.scales + first,
                    output);
        }
    }
}

void multiply(const Call& call, const Activations& activations, int thread, Parts& panels) {
    int64_t first, last;
#ifdef __AMX_INT8__
    if (call.uses_amx) {
        const TileScope tiles;
        while (panels.take(thread, first, last)) {
            multiply_panels<AmxProduct>(call, activations, first, last);
        }
        return;
    }
#endif
    while (panels.take(thread, first, last)) {
        multiply_panels<VectorProduct>(call, activations, first, last);
    }
}

// Return the weights to fetch first: the beginning of a thread's share of the panels.
Fetch fetch_share(const Call& call, int64_t thread, int64_t num_threads) {
    const int64_t panel_bytes = call.num_blocks * kPanelBlockBytes;
    const int64_t first = call.num_panels * thread / num_threads;
    const int64_t last = call.num_panels * (thread + 1) / num_threads;
    const uint8_t* const weights = call.layer.weights + first * panel_bytes;
    return {weights, weights + std::min((last - first) * panel_bytes, kMaxFetchedWeightBytes)};
}

void run(const Call& call) {
    const int64_t bytes = Activations::bytes(call.rows, call.num_blocks);
    const auto limit = std::min(static_cast<int64_t>(omp_get_max_threads()), call.num_panels);
    const auto num_threads = static_cast<int>(std::min(limit, int64_t{kMaxThreads}));
    const int64_t panel_bytes = call.num_blocks * kPanelBlockBytes;
    const int64_t panels_at_once = std::max(call.num_panels / (num_threads * kPartsPerThread),
                                            (kLeastPartBytes + panel_bytes - 1) / panel_bytes);
    if (call.rows == 1) {
        // Every thread quantizes the row itself, which takes less time than waiting for another.
        in_parallel(num_threads, call.num_panels, panels_at_once, num_threads,
                    [&](int thread, Parts& panels) {
                        const Activations own(kept_space<1>(bytes), 1, call.num_blocks);
                        quantize_rows(call, own, 0, 1, fetch_share(call, thread, num_threads));
                        multiply(call, own, thread, panels);
                    });
        return;
    }
    const Activations shared(kept_space<1>(bytes), call.rows, call.num_blocks);
    in_parallel(num_threads, call.rows, call.rows / (num_threads * kPartsPerThread), num_threads,
                [&](int thread, Parts& rows) {
                    int64_t first, last;
                    while (rows.take(thread, first, last)) {
                        quantize_rows(call, shared, first, last,
                                      fetch_share(call, thread, num_threads));
                    }
                });
    in_parallel(num_threads, call.num_panels, panels_at_once, num_threads,
                [&](int thread, Parts& panels) { multiply(call, shared, thread, panels); });
}

}  // namespace
}  // namespace chatrpc

using namespace chatrpc;

void chatrpc_linear(const chatrpc_linear_layer* layer, const float* x, int64_t rows,
                    int32_t prologue, float eps, const float* residual, float* out) {
    const int64_t num_blocks = (layer->in_features + kBlock - 1) / kBlock;
    const bool is_gated = prologue == kSiluGate || prologue == kGeluTanhGate;
    const int64_t row_width = layer->in_features * (is_gated ? 2 : 1);
    const int64_t fitting = kMaxActivationBytes / (num_blocks * kBlock) / 32 * 32;
    const int64_t chunk = std::clamp(fitting, int64_t{32}, kMaxRows);
    for (int64_t first = 0; first < rows; first += chunk) {
        const int64_t count = std::min(chunk, rows - first);
        const int64_t place = first * layer->out_features;
        run({
            *layer,
            x + first * row_width,
            count,
            quantize_row_for(prologue),
            row_width,
            eps,
            residual == nullptr ? nullptr : residual + place,
            out + place,
            has_amx() && (layer->path == 2 || (layer->path == 0 && count >= kFewestRowsForAmx)),
            num_blocks,
            (layer->out_features + kPanelChannels - 1) / kPanelChannels,
        });
    }
}

void chatrpc_linear_quantize(const float* x, const float* norm, int64_t rows, int64_t in_features,
                             int32_t prologue, float eps, int8_t* q, float* scales) {
    const int64_t num_blocks = (in_features + kBlock - 1) / kBlock;
    const bool is_gated = prologue == kSiluGate || prologue == kGeluTanhGate;
    const QuantizeRow quantize = quantize_row_for(prologue);
    auto* space = reinterpret_cast<float*>(kept_space<0>(num_blocks * kBlock * 4));
    auto* tiles = reinterpret_cast<int8_t*>(kept_space<1>(num_blocks * kTileBytes));
    Fetch fetch(nullptr, nullptr);
    for (int64_t r = 0; r < rows; ++r) {
        scales[r] = quantize(x + r * in_features * (is_gated ? 2 : 1), norm, in_features, eps,
                             space, tiles, fetch).scale;
        for (int64_t b = 0; b < num_blocks; ++b) {
            std::memcpy(q + (r * num_blocks + b) * kBlock, tiles + b * kTileBytes, kBlock);
        }
    }
}

const char* chatrpc_cpu_level() {
#if defined(CHATRPC_AVX512) && defined(__AMX_INT8__)
    return "amx";
#elif defined(CHATRPC_AVX512) && defined(__AVX512BF16__)
    return "bf16";
#elif defined(CHATRPC_AVX512)
    return "vnni";
#elif defined(CHATRPC_AVX2)
    return kIsBiased ? "avxvnni" : "avx2";
#else
    return kIsBiased ? "i8mm" : "dotprod";
#endif
}

int32_t chatrpc_linear_has_amx() { return has_amx() ? 1 : 0; }
