// The threads that share the work of a kernel, and the distribution of its parts among them.
//
// Parts are taken one at a time, not assigned beforehand. If the system takes a thread off its core
// for another process, a call is delayed by one part at most: the other threads take the rest. With
// OpenMP's fixed shares, one busy neighbour made every call wait for the slower half.
//
// A thread without work polls for the next call for some microseconds and then sleeps.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace chatrpc {

constexpr int kMaxThreads = 256;

// The numbers [0, size) in parts of at most `grain`. Each thread has a contiguous range. A thread
// that has finished its own range takes parts from the ends of the others.
class Parts {
  public:
    // With `num_ranges` 1 all threads take parts from the front, in order. The costly parts should
    // come first.
    void reset(int64_t size, int64_t grain, int num_ranges) {
        grain_ = static_cast<uint32_t>(std::max(grain, int64_t{1}));
        num_ranges_ = num_ranges;
        for (int64_t i = 0; i < num_ranges; ++i) {
            ranges_[i].bounds = packed(static_cast<uint32_t>(size * i / num_ranges),
                                       static_cast<uint32_t>(size * (i + 1) / num_ranges));
        }
    }

    // The next part for a thread; false when there is none.
    bool take(int thread, int64_t& first, int64_t& last) {
        for (int i = 0; i < num_ranges_; ++i) {
            if (take_from((thread + i) % num_ranges_, i == 0, first, last)) return true;
        }
        return false;
    }

  private:
    static uint64_t packed(uint32_t first, uint32_t last) { return uint64_t{first} << 32 | last; }

    bool take_from(int range, bool is_own, int64_t& first, int64_t& last) {
        std::atomic<uint64_t>& bounds = ranges_[range].bounds;
        uint64_t seen = bounds;
        for (;;) {
            const auto begin = static_cast<uint32_t>(seen >> 32), end = static_cast<uint32_t>(seen);
            if (begin >= end) return false;
            const uint32_t count = std::min(grain_, end - begin);
            const uint64_t left = is_own ? packed(begin + count, end) : packed(begin, end - count);
            if (bounds.compare_exchange_weak(seen, left)) {
                first = is_own ? begin : end - count;
                last = first + count;
                return true;
            }
        }
    }

    struct alignas(64) Range {
        std::atomic<uint64_t> bounds{0};
    };
    Range ranges_[kMaxThreads];
    uint32_t grain_ = 1;
    int num_ranges_ = 0;
};

using Work = void (*)(void* context, int thread, Parts& parts);

// Calls `work` on up to `num_threads` threads, including the calling thread as number 0, and returns
// when all parts are done. It does not wait for threads that start too late. If several threads call
// this at once, one of them gets the pool and the others work without it.
void run_parallel(int num_threads, int64_t size, int64_t grain, int num_ranges, Work work,
                  void* context);

// The same for anything that can be called with (int thread, Parts& parts).
template <class Body>
void in_parallel(int num_threads, int64_t size, int64_t grain, int num_ranges, Body body) {
    run_parallel(
        num_threads, size, grain, num_ranges,
        [](void* context, int thread, Parts& parts) {
            (*static_cast<Body*>(context))(thread, parts);
        },
        &body);
}

}  // namespace chatrpc
