#include "threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <mutex>
#include <thread>

namespace chatrpc {
namespace {

// A step makes a call every few tens of microseconds, and waking a sleeping thread takes about ten.
// So a thread that waits for the next call of the same step should still be polling.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int kPausesBetweenLooks = 32;

// The state of the pool in one word: which call it is, whether threads may still join it, and how
// many of them are in it.
constexpr uint32_t kInside = 0xffff, kOpen = 1u << 16, kCall = 1u << 17;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Waits until `word` is no longer `seen`, first by polling and then asleep. It may return earlier.
void wait_for_change(std::atomic<uint32_t>& word, uint32_t seen, std::atomic<int>& sleepers) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < kPausesBetweenLooks; ++i) {
            if (word.load(std::memory_order_acquire) != seen) return;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    ++sleepers;
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    --sleepers;
}

void wake(std::atomic<uint32_t>& word, const std::atomic<int>& sleepers) {
    if (sleepers > 0) {
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    }
}

class Pool {
  public:
    void run(int num_threads, int64_t size, int64_t grain, int num_ranges, Work work,
             void* context) {
        start(num_threads);
        work_ = work;
        context_ = context;
        num_threads_ = num_threads;
        parts_.reset(size, grain, num_ranges);
        const uint32_t call = (state_ & ~(kInside | kOpen)) + kCall;
        state_ = call | kOpen;
        wake(state_, sleepers_);
        work(context, 0, parts_);
        uint32_t state = state_ &= ~kOpen;
        while ((state & kInside) != 0) {
            wait_for_change(state_, state, caller_sleeps_);
            state = state_;
        }
    }

    // Locked during a call, because the pool runs one call at a time.
    std::mutex mutex;

  private:
    void start(int num_threads) {
        for (; num_started_ < num_threads - 1; ++num_started_) {
            std::thread thread([this, number = num_started_ + 1] { serve(number); });
            pthread_setname_np(thread.native_handle(), "kernels");
            thread.detach();
        }
    }

    [[noreturn]] void serve(int number) {
        uint32_t done = 0;  // the last call that this thread has been in, or has seen the end of
        for (;;) {
            uint32_t state = state_;
            const uint32_t call = state & ~(kInside | kOpen);
            if ((state & kOpen) == 0 || call == done) {
                wait_for_change(state_, state, sleepers_);
                continue;
            }
            if (!state_.compare_exchange_weak(state, state + 1)) continue;
            done = call;
            if (number < num_threads_) work_(context_, number, parts_);
            state_ -= 1;
            wake(state_, caller_sleeps_);
        }
    }

    std::atomic<uint32_t> state_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<int> caller_sleeps_{0};
    Parts parts_;
    Work work_ = nullptr;
    void* context_ = nullptr;
    int num_threads_ = 0;
    int num_started_ = 0;
};

// The pool is never destroyed: its threads live as long as the process.
Pool& pool() {
    static Pool& the_pool = *new Pool;
    return the_pool;
}

}  // namespace

void run_parallel(int num_threads, int64_t size, int64_t grain, int num_ranges, Work work,
                  void* context) {
    num_threads = std::min(num_threads, kMaxThreads);
    if (num_threads > 1 && size > 1) {
        Pool& shared = pool();
        const std::unique_lock<std::mutex> lock(shared.mutex, std::try_to_lock);
        if (lock.owns_lock()) {
            shared.run(num_threads, size, grain, std::min(num_ranges, num_threads), work, context);
            return;
        }
    }
    static thread_local Parts own;
    own.reset(size, size, 1);
    work(context, 0, own);
}

}  // namespace chatrpc
