// CUDA's words for g++: the kernels of dpq_ref/kernels/cuda run on the host, for tests on machines without a GPU.
//
// A block is a fiber for each thread, all on one thread of the host. __syncthreads lets the next fiber run, so a round
// through all fibers takes each to its next barrier. Blocks come one after the other. CUDA_ON_HOST_ORDER=backwards
// in the environment turns the order of threads and blocks round: what depends on it is a race.

#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <math.h>
#include <memory>
#include <setjmp.h>
#include <ucontext.h>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __shared__ static  // the blocks come one after the other
#define __align__(n) alignas(n)
#define __launch_bounds__(n)
#define UNROLL
#define SHARED(name) unsigned char* name = host::shared_memory.get()

struct Dim3 {
    int x;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

constexpr std::size_t STACK = 64 << 10;

struct Fiber {
    std::vector<char> stack;
    jmp_buf place;  // where it goes on; made for the first time by makecontext, but jumps need no system call
    bool begun, ended;
    void* fake_stack;
};

static std::vector<Fiber> fibers;
static std::unique_ptr<unsigned char[]> shared_memory;  // new for each launch, so that its end is seen
static jmp_buf scheduler;
static void (*work)();
static int current;

// The address sanitizer has to know which stack is in use.
#if defined(__SANITIZE_ADDRESS__)
static const void* scheduler_stack;
static std::size_t scheduler_size;
#define LEAVE(kept, stack, size) __sanitizer_start_switch_fiber(kept, stack, size)
#define ARRIVE_IN_FIBER(kept) __sanitizer_finish_switch_fiber(kept, &scheduler_stack, &scheduler_size)
#define ARRIVE_IN_SCHEDULER(kept) __sanitizer_finish_switch_fiber(kept, nullptr, nullptr)
#else
#define LEAVE(kept, stack, size)
#define ARRIVE_IN_FIBER(kept)
#define ARRIVE_IN_SCHEDULER(kept)
#endif

static void wait() {
    LEAVE(&fibers[current].fake_stack, scheduler_stack, scheduler_size);
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
    ARRIVE_IN_FIBER(fibers[current].fake_stack);
}

// A fiber lives as long as the library: each round of the loop is a thread of a block.
static void live() {
    ARRIVE_IN_FIBER(nullptr);
    for (;;) {
        work();
        fibers[current].ended = true;
        wait();
    }
}

static void go_on(Fiber& fiber) {
    [[maybe_unused]] void* fake_stack = nullptr;
    fiber.stack.resize(STACK);
    LEAVE(&fake_stack, fiber.stack.data(), STACK);
    if (!_setjmp(scheduler)) {
        if (fiber.begun) _longjmp(fiber.place, 1);
        fiber.begun = true;
        static ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = fiber.stack.data();
        context.uc_stack.ss_size = STACK;
        makecontext(&context, live, 0);
        setcontext(&context);
    }
    ARRIVE_IN_SCHEDULER(fake_stack);
}

static void run_block(int threads, bool backwards) {
    if (fibers.size() < (std::size_t)threads) fibers.resize(threads);
    for (int t = 0; t < threads; t++) fibers[t].ended = false;
    for (int ended = 0; ended < threads;) {
        for (int t = 0; t < threads; t++) {
            current = threadIdx.x = backwards ? threads - 1 - t : t;
            if (fibers[current].ended) continue;
            go_on(fibers[current]);
            ended += fibers[current].ended;
        }
        if (ended && ended < threads) {
            std::fprintf(stderr, "%d of %d threads ended, the others wait at a barrier\n", ended, threads);
            std::abort();
        }
    }
}

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}

// Run a kernel; arguments point to what it takes.
template <class... A> static void run(void (*kernel)(A...), int blocks, int threads, int bytes, void** arguments) {
    static void (*the_kernel)(A...);
    static void** the_arguments;
    the_kernel = kernel, the_arguments = arguments;
    work = [] { call(the_kernel, the_arguments, std::index_sequence_for<A...>()); };
    const char* order = std::getenv("CUDA_ON_HOST_ORDER");
    bool backwards = order && !std::strcmp(order, "backwards");
    shared_memory.reset(new unsigned char[bytes]);
    std::memset(shared_memory.get(), 0xFF, bytes);  // NaN, until something is written there
    blockDim.x = threads, gridDim.x = blocks;
    for (int block = 0; block < blocks; block++) {
        blockIdx.x = backwards ? blocks - 1 - block : block;
        run_block(threads, backwards);
    }
}

}  // namespace host

static inline void __syncthreads() { host::wait(); }

[[maybe_unused]] static inline int atomicMax(int* to, int value) {
    int before = *to;
    if (value > before) *to = value;
    return before;
}

[[maybe_unused]] static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
