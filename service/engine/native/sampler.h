// Samples a token of each row of logits.

#pragma once

#include <cstdint>

extern "C" {

// The parameters of the rows: an array of one element a row each. sampler.py has the same struct.
struct chatrpc_sampling {
    const float* temperatures;
    const double* draws;    // uniform in [0, 1)
    const int64_t* top_k;   // 1 takes the most likely token, of equally likely ones the first
    const float* top_p;
    const float* min_p;
};

// logits [rows, vocab_size], contiguous; token_ids [rows]. vocab_size is less than 2^20. A row of
// which no logit is finite, or one with NaNs, gives any token.
void chatrpc_sample(const chatrpc_sampling* sampling, const float* logits, int64_t rows,
                    int64_t vocab_size, int64_t* token_ids);
}
