#include "linear.h"

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "int4.h"
#include "product.h"
#include "quantize.h"
#include "quantize_groups.h"
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

// The rows of a chunk in int8, tile by tile, and the parameters of each row: those of all rows, for
// each group of inputs that has a scale.
struct Activations {
    RowScale* scales;
    int8_t* tiles;
    int64_t tile_stride;

    static int64_t bytes(int64_t rows, int64_t num_blocks, int64_t num_scales) {
        return scale_bytes(rows, num_scales) +
               round_up(rows, 2 * kTileRows) / kTileRows * num_blocks * kTileBytes;
    }
    Activations(char* space, int64_t rows, int64_t num_blocks, int64_t num_scales)
        : scales(reinterpret_cast<RowScale*>(space)),
          tiles(reinterpret_cast<int8_t*>(space + scale_bytes(rows, num_scales))),
          tile_stride(num_blocks * kTileBytes) {}
    static int64_t scale_bytes(int64_t rows, int64_t num_scales) {
        return round_up(rows * num_scales * static_cast<int64_t>(sizeof(RowScale)), 64);
    }
    int8_t* row(int64_t r) const {
        return tiles + r / kTileRows * tile_stride + r % kTileRows * 64;
    }
};

struct Call {
    const chatrpc_linear_layer& layer;
    const float* x;
    int64_t rows;
    int32_t prologue;
    int64_t row_width;
    float eps;
    const float* residual;
    float* out;
    bool uses_amx;
    int64_t num_blocks;
    int64_t num_panels;
    int64_t panel_bytes;
    int64_t num_scales;  // of a row
};

void quantize_rows(const Call& call, const Activations& activations, int64_t first, int64_t last,
                   Fetch fetch) {
    const int64_t size = call.layer.in_features;
    auto* space = reinterpret_cast<float*>(kept_space<0>(call.num_blocks * kBlock * 4));
    if (call.layer.format == kGroups) {
        const QuantizeRowInGroups quantize = quantize_row_in_groups_for(call.prologue);
        for (int64_t r = first; r < last; ++r) {
            quantize(call.x + r * call.row_width, call.layer.norm, size, call.eps, space,
                     activations.row(r), fetch, activations.scales + r, call.rows);
        }
        return;
    }
    const QuantizeRow quantize = quantize_row_for(call.prologue);
    for (int64_t r = first; r < last; ++r) {
        activations.scales[r] = quantize(call.x + r * call.row_width, call.layer.norm, size,
                                         call.eps, space, activations.row(r), fetch);
    }
}

// Multiplies a panel of 4-bit weights with rows that have a scale for each group of inputs. The
// products of the groups are added in order. `stride` is the distance of a row's scales.
template <class Product>
void multiply_groups(const uint8_t* weights, const int8_t* tiles, int64_t tile_stride,
                     int64_t rows, int64_t num_blocks, const RowScale* scales, int64_t stride,
                     const Output& output) {
    alignas(64) uint8_t panel[kGroupBlocks * kPanelBlockBytes];
    alignas(64) float group_scales[kPanelChannels];
    // The sums are together in the cache. Rows of the output may be a power of 2 apart.
    auto* const sums = reinterpret_cast<float*>(kept_space<2>(rows * kPanelChannels * 4));
    Output partial{group_scales, output.bias, nullptr, sums, kPanelChannels, {0xffff, 0xffff}};
    for (int64_t b = 0; b < num_blocks; b += kGroupBlocks) {
        const int64_t count = std::min(num_blocks - b, kGroupBlocks);
        const int8_t* const group_tiles = tiles + b * kTileBytes;
        read_scales(weights, group_scales);
#ifdef CHATRPC_AVX512
        if constexpr (std::is_same_v<Product, VectorProduct>) {
            group_product(weights, group_tiles, tile_stride, rows, count, scales, partial, panel);
        } else
#endif
        {
            expand_group(weights, count, panel);
            Product()(panel, group_tiles, tile_stride, rows, count, scales, partial);
        }
        partial.is_added = true;
        weights += kGroupBytes;
        scales += stride;
    }
    for (int64_t r = 0; r < rows; ++r) {
        for (int half = 0; half < 2; ++half) {
            const int64_t place = r * output.stride + 16 * half;
            Floats y = load(sums + r * kPanelChannels + 16 * half);
            if (output.residual != nullptr) y = y + load(output.residual + place, output.mask[half]);
            store(output.out + place, output.mask[half], y);
        }
    }
}

template <class Product>
void multiply_panels(const Call& call, const Activations& activations, int64_t first_panel,
                     int64_t last_panel) {
    const chatrpc_linear_layer& layer = call.layer;
    const bool is_cached = (last_panel - first_panel) * call.panel_bytes <= kMaxCachedWeightBytes;
    const int64_t step = is_cached ? kRowsAtOnce : call.rows;
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
            const uint8_t* const weights = layer.weights + p * call.panel_bytes;
            const int64_t stride = activations.tile_stride;
            const int8_t* const tiles = activations.tiles + first / kTileRows * stride;
            const RowScale* const scales = activations.scales + first;
            if (layer.format == kGroups) {
                multiply_groups<Product>(weights, tiles, stride, rows, call.num_blocks, scales,
                                         call.rows, output);
            } else {
                Product()(weights, tiles, stride, rows, call.num_blocks, scales, output);
            }
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
    const int64_t first = call.num_panels * thread / num_threads;
    const int64_t last = call.num_panels * (thread + 1) / num_threads;
    const uint8_t* const weights = call.layer.weights + first * call.panel_bytes;
    return {weights,
            weights + std::min((last - first) * call.panel_bytes, kMaxFetchedWeightBytes)};
}

void run(const Call& call) {
    const int64_t bytes = Activations::bytes(call.rows, call.num_blocks, call.num_scales);
    const auto limit = std::min(static_cast<int64_t>(omp_get_max_threads()), call.num_panels);
    const auto num_threads = static_cast<int>(std::min(limit, int64_t{kMaxThreads}));
    const int64_t panels_at_once =
        std::max(call.num_panels / (num_threads * kPartsPerThread),
                 (kLeastPartBytes + call.panel_bytes - 1) / call.panel_bytes);
    if (call.rows == 1) {
        // Every thread quantizes the row itself, which takes less time than waiting for another.
        in_parallel(num_threads, call.num_panels, panels_at_once, num_threads,
                    [&](int thread, Parts& panels) {
                        const Activations own(kept_space<1>(bytes), 1, call.num_blocks,
                                              call.num_scales);
                        quantize_rows(call, own, 0, 1, fetch_share(call, thread, num_threads));
                        multiply(call, own, thread, panels);
                    });
        return;
    }
    const Activations shared(kept_space<1>(bytes), call.rows, call.num_blocks, call.num_scales);
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
            prologue,
            row_width,
            eps,
            residual == nullptr ? nullptr : residual + place,
            out + place,
            has_amx() && (layer->path == 2 || (layer->path == 0 && count >= kFewestRowsForAmx)),
            num_blocks,
            (layer->out_features + kPanelChannels - 1) / kPanelChannels,
            panel_bytes(layer->format, num_blocks),
            layer->format == kGroups ? num_groups(num_blocks) : 1,
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
