// Sampling by inverse transform, after min-p, top-k and top-p, without sorting the vocabulary.
//
// The weight of a token is its probability relative to that of the most likely one, as an integer.
// So sums of weights are exact, and do not depend on the order in which they are added. The filters
// keep the first tokens in descending order of their weights, equal ones in ascending order of
// their ids. Where such a prefix ends is found digit by digit, as in a radix sort, from the number
// and the weights of the tokens of each digit. Only the tokens of one digit are looked at again.

#include "sampler.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "exp2.h"
#include "simd.h"
#include "threads.h"

namespace chatrpc {
namespace {

using Mass = __int128;  // a sum of weights

constexpr int kLanes = 16;
constexpr int64_t kBlock = 128;  // tokens that are computed together

// A share is the probability of a token relative to the largest one, as a float in [2^-42, 1] or 0.
// Its weight is the share times 2^65: its 24 significant bits times a power of two from 1 to 2^42.
constexpr int kWeightBits = 42, kMantissaBits = 23;
constexpr int kMinExponent = 127 - kWeightBits;
constexpr float kMinShare = 1.0f / (int64_t{1} << kWeightBits);

// The bits of a share in three digits. The first one has the exponent and 3 bits. It is 0 for the
// share 0.
constexpr int kShifts[] = {20, 10, 0};
constexpr int kPerExponent = 8;
constexpr int kMostDigits = 43 * kPerExponent + 1, kLowerDigits = 1024;
constexpr uint32_t kBeforeFirst = kMinExponent * kPerExponent - 1;

// Blocks without a share of at least this are counted only if the prefix is not within the others,
// which are few if the model is confident. All shares of this or more have the same first digits.
constexpr float kLikely = 1.0f / 4096;
constexpr int kFirstLikely = (127 - 12 - kMinExponent) * kPerExponent + 1;

// Counters of this number of neighbours are separate, because an addition to one that has just been
// written waits for it.
constexpr int kCopies = 4;

// A number of tokens in the upper 20 bits, and the sum of their significant bits below.
constexpr int kCountShift = 44;
constexpr uint64_t kSumMask = (uint64_t{1} << kCountShift) - 1;

uint32_t bits_of(float share) {
    uint32_t bits;
    std::memcpy(&bits, &share, sizeof bits);
    return bits;
}

float share_of(uint32_t bits) {
    float share;
    std::memcpy(&share, &bits, sizeof share);
    return share;
}

uint64_t counted(uint32_t bits) {
    return uint64_t{1} << kCountShift | (bits & 0x7fffff) | 0x800000;
}

uint32_t first_digit(uint32_t bits) {
    const uint32_t digit = bits >> kShifts[0];
    return digit > kBeforeFirst ? digit - kBeforeFirst : 0;
}

Mass weight_of(uint32_t bits) {
    return static_cast<Mass>((bits & 0x7fffff) | 0x800000) << ((bits >> 23) - kMinExponent);
}

// The weight in units of 2^-42 of the largest one, rounded down.
int64_t rounded_weight_of(float share) { return static_cast<int64_t>(share * (1 / kMinShare)); }

// The first tokens in order: how many, and the sum of their weights.
struct Prefix {
    int64_t count = 0;
    Mass mass = 0;
};

Prefix operator+(Prefix a, Prefix b) { return {a.count + b.count, a.mass + b.mass}; }

// The numbers of tokens, and their sums of significant bits, by digit.
template <int kDigits>
class Histogram {
  public:
    void clear() { std::memset(counters_, 0, sizeof counters_); }

    void add(int64_t index, uint32_t digit, uint64_t counter) {
        counters_[index % kCopies][digit] += counter;
    }

    // The tokens of a digit, whose shares have the same exponent.
    Prefix tokens(int64_t digit, int exponent) const {
        uint64_t sum = 0;
        for (const auto& copy : counters_) sum += copy[digit];
        return {static_cast<int64_t>(sum >> kCountShift),
                static_cast<Mass>(sum & kSumMask) << (exponent - kMinExponent)};
    }

  private:
    uint64_t counters_[kCopies][kDigits];
};

float largest_of(const float* logits, int64_t size) {
    Floats largest_lanes = broadcast(-INFINITY);
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) largest_lanes = max(load(logits + i), largest_lanes);
    float found = largest(largest_lanes);
    for (; i < size; ++i) found = logits[i] > found ? logits[i] : found;
    return found;
}

int64_t most_likely(const float* logits, int64_t size) {
    const float found = largest_of(logits, size);
    for (int64_t start = 0; start < size; start += kBlock) {
        const int64_t end = std::min(start + kBlock, size);
        bool is_here = false;
        for (int64_t i = start; i < end; ++i) is_here |= logits[i] == found;
        if (is_here) return std::find(logits + start, logits + end, found) - logits;
    }
    return 0;  // there are only NaNs
}

// The shares of a row, and the memory to search them. A thread uses one object for all its rows.
class Row {
  public:
    // Computes the shares. Those that are less than `min_p` become 0.
    void compute(const float* logits, int64_t size, float temperature, float min_p, bool is_counted) {
        size_ = size;
        shares_.resize((size + kBlock - 1) / kBlock * kBlock);
        sums_.clear();
        sum_ = 0;
        uncounted_.clear();
        if (is_counted) counts_.clear();
        const Floats largest = broadcast(largest_of(logits, size));
        const Floats factor = broadcast(static_cast<float>(M_LOG2E) / temperature);
        const Floats least = broadcast(std::max(min_p, kMinShare));
        for (int64_t start = 0; start < size; start += kBlock) {
            float* const shares = shares_.data() + start;
            const bool is_likely = put_shares(logits + start, std::min(kBlock, size - start),
                                              largest, factor, least, shares);
            sums_.push_back(sum_of(shares));
            sum_ += sums_.back();
            if (!is_counted) continue;
            if (is_likely) {
                count(shares);
            } else if (sums_.back() != 0) {
                uncounted_.push_back(start);
            }
        }
    }

    // Returns the token at position `draw` of all weights, in the order of the ids.
    int64_t at(double draw) {
        int64_t target = static_cast<int64_t>(target_of(draw, sum_));
        size_t block = 0;
        while (block + 1 < sums_.size() && sums_[block] <= target) target -= sums_[block++];
        int64_t i = static_cast<int64_t>(block) * kBlock;
        for (; i + 1 < size_; ++i) {
            const int64_t weight = rounded_weight_of(shares_[i]);
            if (weight > target) break;
            target -= weight;
        }
        return i;
    }

    // Returns the token at position `draw` of the weights that top-k and top-p leave, in their
    // order.
    int64_t at(double draw, int64_t top_k, float top_p) {
        if (sum_ == 0) return 0;  // there are NaNs
        Mass kept = static_cast<Mass>(sum_) << kMantissaBits;
        if (top_k < size_) {
            kept = shortest([=](Prefix p) { return p.count >= top_k; }).prefix.mass;
        }
        if (top_p < 1.0f) {
            const double least = static_cast<double>(top_p) * static_cast<double>(kept);
            const auto is_enough = [=](Prefix p) { return static_cast<double>(p.mass) >= least; };
            kept = shortest(is_enough).prefix.mass;
        }
        const Mass target = target_of(draw, kept);
        return shortest([=](Prefix p) { return p.mass > target; }).last;
    }

  private:
    struct End {
        Prefix prefix;
        int64_t last;  // the last token of the prefix; -1 if it has all tokens
    };

    static Mass target_of(double draw, Mass mass) {
        return std::min(static_cast<Mass>(draw * static_cast<double>(mass)), mass - 1);
    }

    // Returns true if at least one share is `kLikely`.
    static bool put_shares(const float* logits, int64_t size, Floats largest, Floats factor,
                           Floats least, float* shares) {
        const Floats lowest = broadcast(-100.0f);  // 2 to that power is less than kMinShare
        const Floats likely = broadcast(kLikely);
        Mask likely_lanes = 0;
        for (int64_t i = 0; i < kBlock; i += kLanes) {
            const int64_t left = std::clamp<int64_t>(size - i, 0, kLanes);
            const Mask mask = static_cast<Mask>((1u << left) - 1);
            const Floats x = load(logits + i, mask);
            const Floats share = exp2<true>(max(lowest, (x - largest) * factor));
            // NaNs become 0, too.
            store(shares + i, keep(mask & lanes_at_least(share, least), share));
            likely_lanes |= lanes_at_least(share, likely);
        }
        return likely_lanes != 0;
    }

    void count(const float* shares) {
        uint32_t digits[kBlock];
        uint64_t counters[kBlock];
        for (int64_t i = 0; i < kBlock; ++i) {
            const uint32_t bits = bits_of(shares[i]);
            digits[i] = first_digit(bits);
            counters[i] = counted(bits);
        }
        for (int64_t i = 0; i < kBlock; ++i) counts_.add(i, digits[i], counters[i]);
    }

    void count_rest() {
        for (const int64_t start : uncounted_) count(shares_.data() + start);
        uncounted_.clear();
    }

    static int64_t sum_of(const float* shares) {
        int64_t sum = 0;
        for (int64_t i = 0; i < kBlock; ++i) sum += rounded_weight_of(shares[i]);
        return sum;
    }

    // Returns the shortest prefix that is enough.
    template <class IsEnough>
    End shortest(IsEnough is_enough) {
        Prefix prefix;
        int64_t digit = kMostDigits - 1;
        for (;; --digit) {
            if (digit == kFirstLikely - 1) count_rest();
            if (digit == 0) return {prefix, -1};
            const int exponent = static_cast<int>((digit + kBeforeFirst) / kPerExponent);
            const Prefix tokens = counts_.tokens(digit, exponent), next = prefix + tokens;
            if (tokens.count != 0 && is_enough(next)) break;
            prefix = next;
        }
        collect(static_cast<uint32_t>(digit));
        const int exponent = static_cast<int>(bits_of(shares_[tokens_[0]]) >> 23);
        for (const int shift : {kShifts[1], kShifts[2]}) {
            narrow(shift, exponent, prefix, is_enough);
        }
        // The tokens that are left have equal weights.
        const Mass weight = weight_of(bits_of(shares_[tokens_[0]]));
        int64_t first = 1, last = static_cast<int64_t>(tokens_.size());
        while (first < last) {
            const int64_t middle = (first + last) / 2;
            if (is_enough(prefix + Prefix{middle, middle * weight})) {
                last = middle;
            } else {
                first = middle + 1;
            }
        }
        return {prefix + Prefix{last, last * weight}, tokens_[last - 1]};
    }

    // Collects the tokens of a first digit, which is not 0.
    void collect(uint32_t digit) {
        tokens_.resize(shares_.size());
        const uint32_t bits = (digit + kBeforeFirst) << kShifts[0];
        const Floats from = broadcast(share_of(bits));
        const Floats to = broadcast(share_of(bits + (1u << kShifts[0])));
        size_t count = 0;
        for (size_t start = 0; start < shares_.size(); start += kLanes) {
            const Floats shares = load(shares_.data() + start);
            uint32_t mask = lanes_at_least(shares, from) & ~lanes_at_least(shares, to);
            for (; mask != 0; mask &= mask - 1) {
                tokens_[count++] = static_cast<int32_t>(start) + __builtin_ctz(mask);
            }
        }
        tokens_.resize(count);
    }

    // Leaves those of the tokens with the lower digit at which the prefix is enough.
    template <class IsEnough>
    void narrow(int shift, int exponent, Prefix& prefix, IsEnough is_enough) {
        const auto digit_of = [&](int32_t i) {
            return bits_of(shares_[i]) >> shift & (kLowerDigits - 1);
        };
        lower_.clear();
        for (size_t n = 0; n < tokens_.size(); ++n) {
            const int32_t i = tokens_[n];
            lower_.add(static_cast<int64_t>(n), digit_of(i), counted(bits_of(shares_[i])));
        }
        uint32_t digit = kLowerDigits - 1;
        for (;; --digit) {
            const Prefix tokens = lower_.tokens(digit, exponent), next = prefix + tokens;
            if (tokens.count != 0 && is_enough(next)) break;
            prefix = next;
        }
        size_t count = 0;
        for (const int32_t i : tokens_) {
            tokens_[count] = i;
            count += digit_of(i) == digit;
        }
        tokens_.resize(count);
    }

    int64_t size_ = 0;
    std::vector<float> shares_;  // in whole blocks
    int64_t sum_ = 0;
    std::vector<int64_t> sums_;  // of the rounded weights of blocks
    std::vector<int64_t> uncounted_;  // the first tokens of blocks
    Histogram<kMostDigits> counts_;
    Histogram<kLowerDigits> lower_;
    std::vector<int32_t> tokens_;
};

int64_t sample(const chatrpc_sampling& s, const float* logits, int64_t size, int64_t row) {
    if (s.top_k[row] == 1) return most_likely(logits, size);
    static thread_local Row shares;
    const bool is_filtered = s.top_k[row] < size || s.top_p[row] < 1.0f || s.min_p[row] > 0.0f;
    shares.compute(logits, size, s.temperatures[row], s.min_p[row], is_filtered);
    return is_filtered ? shares.at(s.draws[row], s.top_k[row], s.top_p[row])
                       : shares.at(s.draws[row]);
}

}  // namespace
}  // namespace chatrpc

using namespace chatrpc;

void chatrpc_sample(const chatrpc_sampling* sampling, const float* logits, int64_t rows,
                    int64_t vocab_size, int64_t* token_ids) {
    in_parallel(omp_get_max_threads(), rows, 1, 1, [&](int thread, Parts& parts) {
        for (int64_t row, last; parts.take(thread, row, last);) {
            for (; row < last; ++row) {
                token_ids[row] = sample(*sampling, logits + row * vocab_size, vocab_size, row);
            }
        }
    });
}
