// A linear layer in int8: y = s_row * s_w * (q_x . q_w) + bias + residual, one call with its
// prologue. Weights may be stored in 4 bits.

#pragma once

#include <cstdint>

extern "C" {

// linear.py has the same struct, with the same fields in the same order.
//
// Weights are stored in panels of 32 output channels. In int8, for every 64 inputs a panel has two tiles of
// 16 channels. A tile has 16 lines of 16 channels x 4 inputs. Each weight is one byte, with 128
// added. A line is the operand of vpdpbusd, a tile that of tdpbsud. A panel is read from front to
// back.
struct chatrpc_linear_layer {
    int64_t out_features;
    int64_t in_features;
    const uint8_t* weights;  // 64-byte aligned
    const float* scales;     // padded to whole panels, as is the bias; not read in the format kGroups
    const float* bias;       // zeros for none
    const float* norm;       // the RMS norm's weights [in_features]; read with that prologue only
    int32_t format;          // 0 is int8, 1 is kGroups of int4.h
    int32_t path;            // 1 is VNNI, 2 is AMX, 0 the faster one for the number of rows
};

// x [rows, in_features], or [rows, 2 * in_features] with a gate; out and residual (which may be the
// same, or null) [rows, out_features]. Contiguous float32.
void chatrpc_linear(const chatrpc_linear_layer* layer, const float* x, int64_t rows,
                    int32_t prologue, float eps, const float* residual, float* out);

// Computes only the quantized rows: q [rows, padded in_features], scales [rows]. `norm` is that of
// the layer.
void chatrpc_linear_quantize(const float* x, const float* norm, int64_t rows, int64_t in_features,
                             int32_t prologue, float eps, int8_t* q, float* scales);

// Rotates a weight [out_features, in_features] of float32 (type 0), bfloat16 (1) or float16 (2),
// and quantizes it to int8 by channel. `packed` and `scales` are whole panels.
void chatrpc_linear_pack(const void* weight, int32_t type, int64_t out_features,
                         int64_t in_features, uint8_t* packed, float* scales);

// The same for a weight in blocks of GGUF's types (blocks.h has the numbers of the types).
void chatrpc_linear_pack_blocks(const uint8_t* blocks, int32_t type, int64_t out_features,
                                int64_t in_features, uint8_t* packed, float* scales);

// The functions below pack a weight in the format kGroups. This one quantizes a weight of
// chatrpc_linear_pack's types to 4 bits.
void chatrpc_int4_pack(const void* weight, int32_t type, int64_t out_features, int64_t in_features,
                       uint8_t* packed);

// Packs a weight that has 4 bits. `values` [out_features, in_features / 2] has two values in a byte,
// the one with the even index in the lower bits; `scales` and `minimums` are [out_features,
// in_features / group_size] and the weights value * scale - minimum. group_size is a multiple of 32.
// Without minimums (null), they are 8 * scale.
void chatrpc_int4_pack_groups(const uint8_t* values, const float* scales, const float* minimums,
                              int64_t out_features, int64_t in_features, int64_t group_size,
                              uint8_t* packed);

// Packs a weight in blocks of the types Q4_0, Q4_1 or Q4_K.
void chatrpc_int4_pack_blocks(const uint8_t* blocks, int32_t type, int64_t out_features,
                              int64_t in_features, uint8_t* packed);

// Returns the name of the instructions that the library was compiled for; see levels.py.
const char* chatrpc_cpu_level();

// Returns 1 if the CPU has AMX tiles and the operating system permits them, else 0.
int32_t chatrpc_linear_has_amx();

// Returns 0 if all known products are correct, else the number of the first wrong one.
int32_t chatrpc_linear_self_test();
}
