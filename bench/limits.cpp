// Kernels that a core executes as fast as it can: reading memory, and multiplying and adding in
// registers.

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// Enough independent sums to hide the latency of an instruction on two execution units.
constexpr int num_sums = 12;

// Hides from the compiler that all sums are equal.
template <typename Vector>
inline void keep(Vector& sum) {
    asm volatile("" : "+v"(sum));
}

}  // namespace

extern "C" {

// Returns the sum of `count` numbers, so that all of them are read.
uint64_t read_memory(const uint64_t* numbers, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; ++i) {
        sum += numbers[i];
    }
    return sum;
}

// Each of the functions below returns the operations that it did in `count` rounds, or 0 if this
// CPU has no such instruction. A multiplication and an addition are two operations. `sink` gets a
// result, so that the compiler keeps the work.

int64_t multiply_int8(int64_t count, float* sink) {
#if defined(__AVX512VNNI__)
    const __m512i a = _mm512_set1_epi8(static_cast<char>(*sink)), b = _mm512_set1_epi8(3);
    __m512i sums[num_sums] = {};
    for (int64_t i = 0; i < count; ++i) {
        for (__m512i& sum : sums) {
            sum = _mm512_dpbusd_epi32(sum, a, b);
            keep(sum);
        }
    }
    for (const __m512i& sum : sums) {
        *sink += static_cast<float>(_mm512_reduce_add_epi32(sum));
    }
    return count * num_sums * 64 * 2;
#elif defined(__AVX2__)
    const __m256i a = _mm256_set1_epi8(static_cast<char>(*sink)), b = _mm256_set1_epi8(3);
    __m256i sums[num_sums] = {};
    for (int64_t i = 0; i < count; ++i) {
        for (__m256i& sum : sums) {
#if defined(__AVXVNNI__)
            sum = _mm256_dpbusd_avx_epi32(sum, a, b);
#else
            __m256i left = a;
            keep(left);
            const __m256i pairs = _mm256_maddubs_epi16(left, b);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
            keep(sum);
        }
    }
    for (const __m256i& sum : sums) {
        *sink += static_cast<float>(_mm256_extract_epi32(sum, 0));
    }
    return count * num_sums * 32 * 2;
#else
    return 0;
#endif
}

int64_t multiply_bf16(int64_t count, float* sink) {
#if defined(__AVX512BF16__)
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(*sink), _mm512_set1_ps(*sink));
    __m512 sums[num_sums] = {};
    for (int64_t i = 0; i < count; ++i) {
        for (__m512& sum : sums) {
            sum = _mm512_dpbf16_ps(sum, a, a);
            keep(sum);
        }
    }
    for (const __m512& sum : sums) {
        *sink += _mm512_reduce_add_ps(sum);
    }
    return count * num_sums * 32 * 2;
#else
    return 0;
#endif
}
}
