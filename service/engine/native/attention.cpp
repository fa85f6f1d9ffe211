// Causal attention over a paged cache: rotary, cache write and attention of one layer in one call.
//
// A row (one token's query head) attends to segments of 256 positions, counted from position 0 of
// its sequence. For a segment the kernel computes all scores, their maximum, the weights relative
// to the maximum, and the weighted sum of the values. Then it merges the segments' sums in order.
// All of this depends only on the row's query and on the keys and values that it attends to, not on
// other rows, blocks or threads. So a token's result has the same bits in a decode, a verification
// or any chunk of a prompt.
//
// attention.py describes the layout of the cache. If the CPU has products of bfloat16 (AMX tiles or
// AVX-512 BF16), they read a cache of bfloat16, with queries and weights rounded to bfloat16 and sums
// in float32. A cache of int8 is read by products of bytes, if the CPU has AVX-512 VNNI, with queries
// and weights rounded to 16 bits. On other CPUs, and for a cache of float32, everything is computed
// in float32.

#include <cmath>
#include <vector>

#include "attention_int8.h"
#include "attention_kernels.h"
#include "threads.h"
#if defined(CHATRPC_AVX512) && defined(__AVX512BF16__)
#define CHATRPC_BF16
#include "attention_bf16.h"
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define CHATRPC_AMX
#include "attention_amx.h"
#endif
#endif

extern "C" {

// attention.py has the same structs, with the same fields in the same order.
struct chatrpc_attention_layer {
    void* cache;
    float* scales;  // of a cache of int8: [num_blocks][num_kv_heads][2: keys, values][block_size]
    const float* q_norm;  // [head_dim] each, or null
    const float* k_norm;
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t block_size;
    int64_t window;  // 0 means no window
    float norm_eps;
    float scale;
    float softcap;  // 0 means no soft cap
    int32_t type;  // a value of `CacheType`
};

struct chatrpc_attention_plan {
    const int32_t* row_starts;    // [num_sequences + 1]
    const int32_t* context_lens;  // [num_sequences]
    const int32_t* table_starts;  // [num_sequences]: index in `blocks` of its first block
    const int32_t* blocks;
    int64_t num_sequences;
    int64_t num_threads;
};

// The cosines and the sines for the T rows of a step, each [T, dim / 2]. The first `dim` dimensions
// of a head are rotated: dimension i together with dimension i + dim / 2.
struct chatrpc_attention_rotary {
    const float* cos;
    const float* sin;
    int64_t dim;
};
}

namespace chatrpc::attention {
namespace {

using Layer = chatrpc_attention_layer;
using Plan = chatrpc_attention_plan;
using Rotary = chatrpc_attention_rotary;

constexpr float kLog2E = 1.44269504088896f;

enum CacheType : int32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2 };

struct Call {
    const Layer& layer;
    const Plan& plan;
    const float* qkv;
    const Rotary* rotary;  // or null
    float* out;

    int group() const { return static_cast<int>(layer.num_heads / layer.num_kv_heads); }
    int dim() const { return static_cast<int>(layer.head_dim); }
    int64_t width() const { return (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim; }
    int num_tokens(int64_t s) const { return plan.row_starts[s + 1] - plan.row_starts[s]; }
    // The position in sequence s of its first token in this step.
    int start(int64_t s) const { return plan.context_lens[s] - num_tokens(s); }
    // Number of tokens whose values are interleaved; see attention.py.
    int value_step() const {
        return layer.type == kBfloat16 && layer.block_size % 32 == 0 ? 32 : kGroup;
    }
    int first_visible(int position) const {
        return layer.window == 0 || position < layer.window
                   ? 0
                   : position - static_cast<int>(layer.window) + 1;
    }

    // The index of a position's key in a cache with `width` elements for each key and each value.
    int64_t index(int64_t s, int64_t kv_head, int position, int64_t width) const {
        const auto size = static_cast<int>(layer.block_size);  // a division of 64 bits is slower
        const int64_t block = plan.blocks[plan.table_starts[s] + position / size];
        return ((block * layer.num_kv_heads + kv_head) * 2 * size + position % size) * width;
    }
    // The address of the key group (of 16 tokens) or value step that begins at a position.
    template <typename T>
    T* keys(int64_t s, int64_t kv_head, int position) const {
        return static_cast<T*>(layer.cache) + index(s, kv_head, position, layer.head_dim);
    }
    template <typename T>
    T* values(int64_t s, int64_t kv_head, int position) const {
        return keys<T>(s, kv_head, position) + layer.block_size * layer.head_dim;
    }
    float* key_scales(int64_t s, int64_t kv_head, int position) const {
        return layer.scales + index(s, kv_head, position, 1);
    }
    float* value_scales(int64_t s, int64_t kv_head, int position) const {
        return key_scales(s, kv_head, position) + layer.block_size;
    }
};

// Some rows of one sequence and one key-value head. Row r is query head r % group of the
// sequence's token r / group of this step.
struct Tile {
    int64_t sequence;
    int64_t kv_head;
    int first_row;
    int num_rows;
    int first_visible;  // the first position that the first row attends to
    int end;            // the position of the last row, plus 1

    int first_segment() const { return first_visible / kSegment; }
    int num_segments() const { return (end - 1) / kSegment - first_segment() + 1; }
};

// A segment's share of a tile's result, before the division by the total weight.
struct Partial {
    float* sum;      // [rows, rounded up to whole tiles of 16][dim]
    float* maximum;  // [kTileRows]
    float* total;    // [kTileRows]; 0 if the row attends to no position of the segment
};

struct alignas(64) Scratch {
    float q[kTileRows * kMaxDim];  // or bfloat16, or bytes
    float scores[kTileRows * kSegment];
    float partial_sum[kTileRows * kMaxDim];
    float partial_maximum[kTileRows];
    float partial_total[kTileRows];
    float sum[kTileRows * kMaxDim];
    float maximum[kTileRows];
    float total[kTileRows];
    float keys[kSegment * kMaxDim];    // unpacked, if the cache cannot be used directly
    float values[kSegment * kMaxDim];
    float row[kMaxDim];
#ifdef CHATRPC_AVX512
    ByteQuery byte_queries[kTileRows];
#endif
};

thread_local Scratch scratch;

// A masked store must reach the cache before its result can be loaded, which takes 20 cycles for
// each vector.
inline void store_lanes(float* out, Mask mask, Floats v) {
    if (mask == 0xffff) {
        store(out, v);
    } else {
        store(out, mask, v);
    }
}

// One head of one row of qkv, normalized and rotated.
void load_head(const Call& call, int64_t row, int64_t head, const float* norm, float* out) {
    const int dim = call.dim();
    const float* x = call.qkv + row * call.width() + head * dim;
    if (norm != nullptr) {
        Floats squares = zero_floats();
        for (int d = 0; d < dim; d += kGroup) {
            const Floats v = load(x + d);
            squares = fma(v, v, squares);
        }
        const float mean = sum(squares) / static_cast<float>(dim);
        const Floats factor = broadcast(1.0f / std::sqrt(mean + call.layer.norm_eps));
        for (int d = 0; d < dim; d += kGroup) {
            store(out + d, load(x + d) * factor * load(norm + d));
        }
        x = out;
    }
    int rotated = 0;
    if (call.rotary != nullptr) {
        rotated = static_cast<int>(call.rotary->dim);
        const int half = rotated / 2;
        const float *cos = call.rotary->cos + row * half, *sin = call.rotary->sin + row * half;
        for (int d = 0; d < half; d += kGroup) {
            const int left = std::min(half - d, kGroup);
            const auto mask = static_cast<Mask>(0xffffu >> (kGroup - left));
            const Floats c = load(cos + d, mask), s = load(sin + d, mask);
            const Floats a = load(x + d, mask), b = load(x + half + d, mask);
            store_lanes(out + d, mask, fms(a, c, b * s));
            store_lanes(out + half + d, mask, fma(b, c, a * s));
        }
    }
    if (x != out) std::copy(x + rotated, x + dim, out + rotated);
}

void write_token(const Call& call, int64_t s, int64_t row) {
    const Layer& layer = call.layer;
    const int dim = call.dim(), step = call.value_step();
    const int position = call.start(s) + static_cast<int>(row - call.plan.row_starts[s]);
    const int offset = position % step;
    float* key = scratch.row;
    for (int64_t h = 0; h < layer.num_kv_heads; ++h) {
        load_head(call, row, layer.num_heads + h, layer.k_norm, key);
        const float* value =
            call.qkv + row * call.width() + (layer.num_heads + layer.num_kv_heads + h) * dim;
        const int group = position & -kGroup, first = position - offset;
        if (layer.type == kInt8) {
            const int lane = position % kGroup;
            int8_t bytes[kMaxDim];
            rotate_head(key, dim);
            float key_scale = quantize_head(key, dim, bytes);
            put_key(bytes, dim, lane, call.keys<uint8_t>(s, h, group));
            const float value_scale = quantize_head(value, dim, bytes);
            put_value(bytes, dim, lane, call.values<int8_t>(s, h, group));
            if (std::isnan(value_scale)) key_scale = value_scale;
            *call.key_scales(s, h, position) = key_scale;
            *call.value_scales(s, h, position) = value_scale;
        } else if (layer.type == kBfloat16) {
            // Each 32-bit word has two dimensions of a key, [dim / 2][16], or two tokens' values.
            uint32_t words[kMaxDim / 2];
            for (int d = 0; d < dim; d += kGroup) {
                store_bf16(reinterpret_cast<uint16_t*>(words) + d, load(key + d));
            }
            auto* keys = call.keys<uint16_t>(s, h, group);
            for (int i = 0; i < dim / 2; ++i) {
                std::memcpy(keys + 2 * (i * kGroup + position % kGroup), words + i, 4);
            }
            // The store leaves the other token of the pair, which another thread may be writing.
            const int odd = offset % 2;
            uint16_t* line = call.values<uint16_t>(s, h, first) + (offset / 2) * 2 * kGroup;
            for (int d = 0; d < dim; d += kGroup, line += step * kGroup) {
                store_bf16_in_pairs(line, odd, load(value + d));
            }
        } else {
            float* keys = call.keys<float>(s, h, group) + position % kGroup;
            for (int d = 0; d < dim; ++d) keys[d * kGroup] = key[d];
            float* line = call.values<float>(s, h, first) + offset * kGroup;
            for (int d = 0; d < dim; d += kGroup, line += step * kGroup) {
                store(line, load(value + d));
            }
        }
    }
}

int position_of(const Call& call, const Tile& tile, int r) {
    return call.start(tile.sequence) + (tile.first_row + r) / call.group();
}

// The positions of a segment that a tile attends to.
struct Range {
    int lo;
    int hi;
};

Range range_in(int first_visible, int end, int segment) {
    const int origin = segment * kSegment;
    return {std::clamp(first_visible - origin, 0, kSegment), std::clamp(end - origin, 0, kSegment)};
}

// Calls weigh(r, scores, seen) for each row, with the positions of the segment that the row attends
// to; {begin, begin} if there are none. It converts the scores to weights, relative to
// `out.maximum[r]`, and returns their sum.
template <typename Weigh>
void weigh_rows(const Call& call, const Tile& tile, int segment, int begin, Partial out,
                Weigh weigh) {
    const float cap = call.layer.softcap * kLog2E;
    Range seen[kTileRows];
    // All maxima are computed first, so that the exponentials of a row do not wait for another row.
    for (int r = 0; r < tile.num_rows; ++r) {
        const int position = position_of(call, tile, r);
        seen[r] = range_in(call.first_visible(position), position + 1, segment);
        if (seen[r].lo >= seen[r].hi) seen[r] = {begin, begin};
        float* scores = scratch.scores + r * kSegment;
        if (cap != 0.0f) cap_scores(scores, seen[r].lo, seen[r].hi, cap);
        out.maximum[r] = largest_score(scores, seen[r].lo, seen[r].hi);
    }
    for (int r = 0; r < tile.num_rows; ++r) {
        out.total[r] = weigh(r, scratch.scores + r * kSegment, seen[r]);
    }
}

// The same with weights of float32 or bfloat16, which are 0 in the other lanes of [begin, end).
template <typename Weight>
void weigh_rows(const Call& call, const Tile& tile, int segment, int begin, int end, Partial out) {
    weigh_rows(call, tile, segment, begin, out, [&](int r, float* scores, Range seen) {
        return weigh<Weight>(scores, seen.lo, seen.hi, begin, end, out.maximum[r]);
    });
}

// Arithmetic in float32, over a cache of any type.
struct Fma {
    static void prepare() {}
    static void release() {}

    static void put_query(const Call& call, int r, const float* query) {
        std::copy(query, query + call.dim(), scratch.q + r * call.dim());
    }

    static void attend(const Call& call, const Tile& tile, int segment, Partial out) {
        const int dim = call.dim(), origin = segment * kSegment;
        const Range seen = range_in(tile.first_visible, tile.end, segment);
        const int g0 = seen.lo / kGroup, g1 = (seen.hi + kGroup - 1) / kGroup;
        const float *keys[kSegment / kGroup], *values[kSegment / kGroup];
        for (int g = g0; g < g1; ++g) {
            const int position = origin + g * kGroup;
            if (call.layer.type != kFloat32) {
                keys[g] = scratch.keys + g * kGroup * dim;
                values[g] = scratch.values + g * kGroup * dim;
                unpack(call, tile, position, scratch.keys + g * kGroup * dim,
                       scratch.values + g * kGroup * dim);
            } else {
                keys[g] = call.keys<float>(tile.sequence, tile.kv_head, position);
                values[g] = call.values<float>(tile.sequence, tile.kv_head, position);
            }
        }
        scores_fma(scratch.q, keys, g0, g1, tile.num_rows, dim, scratch.scores);
        weigh_rows<float>(call, tile, segment, g0 * kGroup, g1 * kGroup, out);
        values_fma(scratch.scores, values, seen.lo, seen.hi, tile.num_rows, dim, out.sum);
    }

    // Converts a group of keys and values to the layout of a float32 cache.
    static void unpack(const Call& call, const Tile& tile, int position, float* keys,
                       float* values) {
        const int64_t s = tile.sequence, h = tile.kv_head;
        const int dim = call.dim(), step = call.value_step();
        if (call.layer.type == kInt8) {
            unpack_keys(call.keys<uint8_t>(s, h, position), call.key_scales(s, h, position), dim,
                        keys);
            unpack_values(call.values<int8_t>(s, h, position), call.value_scales(s, h, position),
                          dim, values);
            return;
        }
        unpack_lines(call.keys<uint16_t>(s, h, position), dim / 2, keys);
        const uint16_t* packed =
            call.values<uint16_t>(s, h, position & -step) + position % step * kGroup;
        for (int d = 0; d < dim; d += kGroup, packed += step * kGroup) {
            unpack_lines(packed, kGroup / 2, values + d * kGroup);
        }
    }
};

#ifdef CHATRPC_AVX512

// Arithmetic with bytes, over a cache of int8.
struct Bytes8 {
    static void prepare() {}
    static void release() {}

    static void put_query(const Call& call, int r, const float* query) {
        scratch.byte_queries[r] = put_query_bytes(query, call.dim(), r, queries());
    }

    static void attend(const Call& call, const Tile& tile, int segment, Partial out) {
        const int dim = call.dim(), rows = tile.num_rows;
        const Range seen = range_in(tile.first_visible, tile.end, segment);
        const int g0 = seen.lo / kGroup, g1 = (seen.hi + kGroup - 1) / kGroup;
        const uint8_t* keys[kSegment / kGroup];
        const int8_t* values[kSegment / kGroup];
        float *const key_scales = scratch.keys, *const value_scales = scratch.values;
        for (int g = g0; g < g1; ++g) {
            const int64_t s = tile.sequence, h = tile.kv_head;
            const int position = segment * kSegment + g * kGroup;
            keys[g] = call.keys<uint8_t>(s, h, position);
            values[g] = call.values<int8_t>(s, h, position);
            store(key_scales + g * kGroup, load(call.key_scales(s, h, position)));
            store(value_scales + g * kGroup, load(call.value_scales(s, h, position)));
        }
        for (int g = g0; g < g1; g += kBlockVectors) {
            const int vectors = std::min(kBlockVectors, g1 - g);
            for (int r = 0; r < rows; r += kBlockRows) {
                const int block = std::min(kBlockRows, rows - r);
                kScoresBytes[block - 1][vectors - 1](
                    queries() + r * kQuad, scratch.byte_queries + r, keys + g,
                    key_scales + g * kGroup, dim, scratch.scores + r * kSegment + g * kGroup);
            }
        }
        ByteWeights weights[kTileRows];
        weigh_rows(call, tile, segment, g0 * kGroup, out, [&](int r, float* scores, Range range) {
            weights[r] = weigh_bytes(scores, range.lo, range.hi, g0 * kGroup, g1 * kGroup,
                                     out.maximum[r], value_scales);
            return weights[r].total;
        });
        const auto* bytes = reinterpret_cast<const uint8_t*>(scratch.scores);
        for_slices(dim, kBlockVectors, [&](int first, int width) {
            for (int r = 0; r < rows; r += kBlockRows) {
                const int block = std::min(kBlockRows, rows - r);
                kValuesBytes[block - 1][width - 1](bytes + r * kSegment * sizeof(float),
                                                   weights + r, values, first * kGroup * kGroup, g0,
                                                   g1, dim, out.sum + r * dim + first * kGroup);
            }
        });
    }

    static int8_t* queries() { return reinterpret_cast<int8_t*>(scratch.q); }
};

#endif

#ifdef CHATRPC_BF16

// Arithmetic with bfloat16 operands, over a bfloat16 cache.
//
// `Products` are the two matrix products: `DotProducts` or `AmxProducts`.
template <typename Products>
struct Bf16 {
    static void prepare() { Products::prepare(); }
    static void release() { Products::release(); }

    static void put_query(const Call& call, int r, const float* query) {
        Products::put_query(query, call.dim(), queries() + r * Products::query_stride(call.dim()));
    }

    static void attend(const Call& call, const Tile& tile, int segment, Partial out) {
        const int dim = call.dim(), step = call.value_step(), origin = segment * kSegment;
        const Range seen = range_in(tile.first_visible, tile.end, segment);
        const int s0 = seen.lo / step, s1 = (seen.hi + step - 1) / step;
        const int g0 = s0 * step / kGroup, g1 = s1 * step / kGroup;
        const uint16_t *keys[kSegment / kGroup], *values[kSegment / kGroup];
        for (int g = g0; g < g1; ++g) {
            keys[g] = call.keys<uint16_t>(tile.sequence, tile.kv_head, origin + g * kGroup);
        }
        auto* copies = reinterpret_cast<uint16_t*>(scratch.values);
        for (int s = s0; s < s1; ++s) {
            values[s] = call.values<uint16_t>(tile.sequence, tile.kv_head, origin + s * step);
            const int lo = seen.lo - s * step, hi = seen.hi - s * step;
            if (lo <= 0 && hi >= step) continue;
            uint16_t* copy = copies + (s == s0 ? 0 : step * dim);
            copy_values_between(values[s], lo, hi, step, dim, copy);
            values[s] = copy;
        }
        Products::scores(queries(), keys, g0, g1, tile.num_rows, step, dim, scratch.scores);
        weigh_rows<uint16_t>(call, tile, segment, g0 * kGroup, g1 * kGroup, out);
        const auto* weights = reinterpret_cast<const uint16_t*>(scratch.scores);
        Products::values(weights, values, s0, s1, tile.num_rows, step, dim, out.sum);
    }

    static uint16_t* queries() { return reinterpret_cast<uint16_t*>(scratch.q); }
};

#endif

template <typename Kernel>
void load_queries(const Call& call, const Tile& tile) {
    const Layer& layer = call.layer;
    // The factor makes scores base-2 logarithms. For a soft cap they are twice its operand.
    const float factor =
        layer.softcap == 0.0f ? layer.scale * kLog2E : layer.scale * 2.0f * kLog2E / layer.softcap;
    const int group = call.group();
    for (int r = 0; r < tile.num_rows; ++r) {
        const int row = tile.first_row + r;
        load_head(call, call.plan.row_starts[tile.sequence] + row / group,
                  tile.kv_head * group + row % group, layer.q_norm, scratch.row);
        const int width = layer.type == kInt8 ? rotate_head(scratch.row, call.dim()) : 1;
        for (int d = 0; d < call.dim(); d += kGroup) {
            store(scratch.row + d, load(scratch.row + d) * broadcast(factor / width));
        }
        Kernel::put_query(call, r, scratch.row);
    }
}

void start_sum(const Call& call, const Tile& tile) {
    std::fill(scratch.sum, scratch.sum + tile.num_rows * call.dim(), 0.0f);
    std::fill(scratch.maximum, scratch.maximum + kTileRows, kLowest);
    std::fill(scratch.total, scratch.total + kTileRows, 0.0f);
}

// Add the next segment's share to the running sum. A row that attends to no position of the segment
// does not change.
void merge(const Call& call, const Tile& tile, Partial next) {
    alignas(64) float old_factor[kTileRows], new_factor[kTileRows];
    for (int r = 0; r < tile.num_rows; r += kGroup) {
        const Floats before = load(scratch.maximum + r), here = load(next.maximum + r);
        const Floats largest = max(before, here);
        const Floats a = exp2<true>(before - largest), b = exp2<true>(here - largest);
        const Floats total = load(scratch.total + r) * a;
        store(scratch.maximum + r, largest);
        store(scratch.total + r, fma(load(next.total + r), b, total));
        store(old_factor + r, a);
        store(new_factor + r, b);
    }
    const int dim = call.dim();
    for (int r = 0; r < tile.num_rows; ++r) {
        if (next.total[r] == 0.0f) continue;
        const Floats a = broadcast(old_factor[r]), b = broadcast(new_factor[r]);
        for (int d = r * dim; d < (r + 1) * dim; d += kGroup) {
            store(scratch.sum + d, fma(load(next.sum + d), b, load(scratch.sum + d) * a));
        }
    }
}

// Write the tile's rows. Returns false if one is not finite.
bool finish(const Call& call, const Tile& tile) {
    const int dim = call.dim(), group = call.group();
    Mask finite = 0xffff;
    for (int r = 0; r < tile.num_rows; ++r) {
        const int row = tile.first_row + r;
        const int64_t token = call.plan.row_starts[tile.sequence] + row / group;
        const int64_t head = tile.kv_head * group + row % group;
        float* out = call.out + (token * call.layer.num_heads + head) * dim;
        const Floats factor = broadcast(1.0f / scratch.total[r]);
        for (int d = 0; d < dim; d += kGroup) {
            const Floats v = load(scratch.sum + r * dim + d) * factor;
            finite &= finite_lanes(v);
            store(out + d, v);
        }
    }
    return finite == 0xffff;
}

Partial scratch_partial() {
    return {scratch.partial_sum, scratch.partial_maximum, scratch.partial_total};
}

Tile make_tile(const Call& call, int64_t sequence, int64_t kv_head, int first_row, int num_rows) {
    const int start = call.start(sequence), group = call.group();
    return {sequence,
            kv_head,
            first_row,
            num_rows,
            call.first_visible(start + first_row / group),
            start + (first_row + num_rows - 1) / group + 1};
}

template <typename Kernel>
void attend_tile(const Call& call, const Tile& tile);

// A weight of 0 does not remove an infinity or NaN of a later token of the same step, because their
// product is NaN. So the rows attend one at a time here, which otherwise gives the same bits.
template <typename Kernel>
void finish_or_separate(const Call& call, const Tile& tile) {
    if (finish(call, tile) || tile.num_rows == 1) return;
    for (int r = 0; r < tile.num_rows; ++r) {
        attend_tile<Kernel>(
            call, make_tile(call, tile.sequence, tile.kv_head, tile.first_row + r, 1));
    }
}

template <typename Kernel>
void attend_tile(const Call& call, const Tile& tile) {
    load_queries<Kernel>(call, tile);
    start_sum(call, tile);
    for (int i = 0; i < tile.num_segments(); ++i) {
        Kernel::attend(call, tile, tile.first_segment() + i, scratch_partial());
        merge(call, tile, scratch_partial());
    }
    finish_or_separate<Kernel>(call, tile);
}

// Return the tiles of a step. The costly ones come first, so that threads finish together.
void lay_tiles(const Call& call, std::vector<Tile>& tiles) {
    tiles.clear();
    for (const bool is_long : {true, false}) {
        for (int64_t s = 0; s < call.plan.num_sequences; ++s) {
            const int rows = call.num_tokens(s) * call.group();
            if ((rows > kTileRows) != is_long) continue;
            for (int64_t h = 0; h < call.layer.num_kv_heads; ++h) {
                for (int first = (rows - 1) / kTileRows * kTileRows; first >= 0;
                     first -= kTileRows) {
                    tiles.push_back(
                        make_tile(call, s, h, first, std::min(kTileRows, rows - first)));
                }
            }
        }
    }
}

// One segment of one tile, for steps with few tiles. The thread that finishes the last segment of a
// tile merges them.
struct Share {
    int tile;
    int segment;     // index among the tile's segments
    int64_t offset;  // offset of its partial
};

struct Work {
    std::vector<Tile> tiles;
    std::vector<Share> shares;
    std::vector<int> left;  // number of segments of each tile that are not done
    std::vector<float> partials;
};

thread_local Work work;

int64_t partial_size(const Call& call, const Tile& tile) {
    const int rows = (tile.num_rows + 15) / 16 * 16;  // a kernel writes whole tiles
    return 2 * kTileRows + int64_t{rows} * call.dim();
}

Partial partial_at(float* start) {
    return {start + 2 * kTileRows, start, start + kTileRows};
}

void lay_shares(const Call& call, Work& work) {
    work.left.clear();
    int64_t size = 0;
    for (size_t t = 0; t < work.tiles.size(); ++t) {
        const Tile& tile = work.tiles[t];
        for (int i = 0; i < tile.num_segments(); ++i) {
            work.shares.push_back({static_cast<int>(t), i, size});
            size += partial_size(call, tile);
        }
        work.left.push_back(tile.num_segments());
    }
    if (work.partials.size() < static_cast<size_t>(size)) work.partials.resize(size);
}

template <typename Kernel>
void attend_share(const Call& call, Work& work, const Share& share) {
    const Tile& tile = work.tiles[share.tile];
    float* const partials = work.partials.data();
    load_queries<Kernel>(call, tile);
    Kernel::attend(call, tile, tile.first_segment() + share.segment,
                   partial_at(partials + share.offset));
    if (__atomic_sub_fetch(&work.left[share.tile], 1, __ATOMIC_ACQ_REL) != 0) return;
    const int64_t size = partial_size(call, tile);
    float* first = partials + share.offset - share.segment * size;
    start_sum(call, tile);
    for (int i = 0; i < tile.num_segments(); ++i) merge(call, tile, partial_at(first + i * size));
    finish_or_separate<Kernel>(call, tile);
}

template <typename Kernel>
void attend_step(const Call& call) {
    const Plan& plan = call.plan;
    const auto threads = static_cast<int>(plan.num_threads);
    Work& shared = work;
    lay_tiles(call, shared.tiles);
    shared.shares.clear();
    auto units = static_cast<int64_t>(shared.tiles.size());
    if (threads > 1 && units < 4 * threads) {
        lay_shares(call, shared);
        units = static_cast<int64_t>(shared.shares.size());
    }
    const int32_t* const ends = plan.row_starts + 1;
    const int64_t rows = plan.row_starts[plan.num_sequences];
    // Writing a few rows takes less time than waking other threads.
    in_parallel(rows <= 16 ? 1 : threads, rows, 4, threads, [&](int thread, Parts& parts) {
        for (int64_t row, last; parts.take(thread, row, last);) {
            for (; row < last; ++row) {
                write_token(call, std::upper_bound(ends, ends + plan.num_sequences, row) - ends,
                            row);
            }
        }
    });
    // Threads take tiles from the front, because the costly tiles come first.
    in_parallel(threads, units, 1, 1, [&](int thread, Parts& parts) {
        Kernel::prepare();
        for (int64_t i, last; parts.take(thread, i, last);) {
            for (; i < last; ++i) {
                if (shared.shares.empty()) {
                    attend_tile<Kernel>(call, shared.tiles[i]);
                } else {
                    attend_share<Kernel>(call, shared, shared.shares[i]);
                }
            }
        }
        Kernel::release();
    });
}

}  // namespace
}  // namespace chatrpc::attention

extern "C" {

// qkv [T, (num_heads + 2 * num_kv_heads) * head_dim] and out [T, num_heads * head_dim] for the T
// rows of the plan, float32 and contiguous. `rotary` may be null.
void chatrpc_attend(const chatrpc_attention_layer* layer, const chatrpc_attention_plan* plan,
                    const chatrpc_attention_rotary* rotary, const float* qkv, float* out) {
    using namespace chatrpc::attention;
    const Call call{*layer, *plan, qkv, rotary, out};
#ifdef CHATRPC_AMX
    if (layer->type == kBfloat16 && layer->head_dim >= kKeyDepth && has_amx()) {
        return attend_step<Bf16<AmxProducts>>(call);
    }
#endif
#ifdef CHATRPC_BF16
    if (layer->type == kBfloat16) return attend_step<Bf16<DotProducts>>(call);
#endif
#ifdef CHATRPC_AVX512
    if (layer->type == kInt8) return attend_step<Bytes8>(call);
#endif
    attend_step<Fma>(call);
}
}
