// An int8 linear layer: y = s_row * s_w * (q_x . q_w) + bias + residual, one call with its prologue.

#pragma once

#include <cstdint>

extern "C" {

// Mirrored field by field in linear.py.
//
// Weights come in panels of 32 output channels; a panel is, for every 64 inputs, two tiles of 16
// channels; a tile is 16 lines of 16 channels x 4 inputs, one byte each: the weight plus 128. That
// is the operand of both vpdpbusd (a line) and tdpbsud (a tile), and a panel is read front to back.
struct chatrpc_linear_layer {
    int64_t out_features;
    int64_t in_features;
    const uint8_t* weights;  // 64-byte aligned
    const float* scales;     // padded to whole panels, as is the bias
    const float* bias;       // zeros for none
    const float* norm;       // the RMS norm's weights [in_features]; read with that prologue only
    int32_t path;            // 0: the faster for the number of rows; 1: VNNI; 2: AMX
};

// x [rows, in_features], or [rows, 2 * in_features] with a gate; out and residual (which may be the
// same, or null) [rows, out_features]. Contiguous float32.
void chatrpc_linear(const chatrpc_linear_layer* layer, const float* x, int64_t rows,
                    int32_t prologue, float eps, const float* residual, float* out);

// Only the first half of it: q [rows, padded in_features], scales [rows]. `norm` as in the layer.
void chatrpc_linear_quantize(const float* x, const float* norm, int64_t rows, int64_t in_features,
                             int32_t prologue, float eps, int8_t* q, float* scales);

// A weight [out_features, in_features] of float32 (type 0), bfloat16 (1) or float16 (2) to the int8 of
// a layer: rotated, and quantized by channel. `packed` and `scales` are whole panels.
void chatrpc_linear_pack(const void* weight, int32_t type, int64_t out_features,
                         int64_t in_features, uint8_t* packed, float* scales);

// 1 where the CPU and the kernel grant the AMX tiles.
int32_t chatrpc_linear_has_amx();

// 0, or the number of the first known product that came out wrong.
int32_t chatrpc_linear_self_test();
}
