// CUDA's words for the host's compiler: a kernel's blocks one after another, and each thread of a block on a stack of
// its own, which is left at a barrier or shuffle and taken up again when the block or warp is there.

#include <ucontext.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(most)

using std::exp, std::expm1, std::fabs, std::isfinite, std::log, std::sqrt, std::tanh;

struct dim3 {
    unsigned x, y, z;
};

static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_cpu {

enum Place { RUNNING, AT_WARP, AT_BLOCK, READY };  // a thread waits for its warp or its block, or may go on

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    Place place = RUNNING;
    unsigned warp;
};

static std::vector<std::unique_ptr<Fiber>> fibers;
static Fiber* current;
static ucontext_t scheduler;
static unsigned next_thread, threads;
static std::mt19937 order;  // a GPU's threads have none: in another one each time, a missing barrier shows
static bool flushes;  // floats smaller than the smallest normal number are 0, as CuPy has its kernels compiled
static bool fault;  // threads wait for others that never come, or a warp is not whole
static const std::function<void()>* body;

inline unsigned thread() { return threadIdx.y * blockDim.x + threadIdx.x; }

inline void take_threads() {
    for (;;) {
#ifdef __SSE__
        _mm_setcsr(flushes ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040);
#endif
        while (next_thread < threads) {
            threadIdx = {next_thread % blockDim.x, next_thread / blockDim.x, 0};
            ++next_thread;
            (*body)();
        }
        swapcontext(&current->context, &scheduler);
    }
}

inline void wait(Place place) {
    Fiber* own = current;
    const dim3 index = threadIdx;
    own->place = place;
    own->warp = thread() / 32;
    swapcontext(&own->context, &scheduler);
    threadIdx = index;
}

// Let a warp go on, if all its threads are there.
inline bool release(Place place, unsigned warp) {
    std::vector<Fiber*> waiting;
    for (auto& fiber : fibers)
        if (fiber->place == place && fiber->warp == warp) waiting.push_back(fiber.get());
    if (waiting.size() != 32) return false;
    std::shuffle(waiting.begin(), waiting.end(), order);
    for (Fiber* fiber : waiting) {
        current = fiber;
        fiber->place = RUNNING;
        swapcontext(&scheduler, &fiber->context);
    }
    return true;
}

inline void run_block() {
    next_thread = 0;
    for (unsigned i = 0; next_thread < threads; ++i) {
        if (i == fibers.size()) {
            fibers.push_back(std::make_unique<Fiber>());
            Fiber* fiber = fibers.back().get();
            getcontext(&fiber->context);
            fiber->context.uc_stack.ss_sp = fiber->stack.data();
            fiber->context.uc_stack.ss_size = fiber->stack.size();
            makecontext(&fiber->context, take_threads, 0);
        }
        current = fibers[i].get();
        swapcontext(&scheduler, &current->context);
    }
    std::vector<unsigned> warps(threads / 32);
    std::iota(warps.begin(), warps.end(), 0u);
    const auto count = [](Place place) {
        return std::count_if(fibers.begin(), fibers.end(), [=](auto& fiber) { return fiber->place == place; });
    };
    while (count(RUNNING) != fibers.size()) {
        bool moved = false;
        if (count(AT_BLOCK) == threads)
            for (auto& fiber : fibers)
                if (fiber->place == AT_BLOCK) fiber->place = READY;
        std::shuffle(warps.begin(), warps.end(), order);
        for (unsigned warp : warps)  // each as far as it gets, before the next
            while (release(READY, warp) || release(AT_WARP, warp)) moved = true;
        if (moved) continue;
        fault = true;
        fibers.clear();
    }
}

template <typename... A, std::size_t... I>
void call(void (*kernel)(A...), void** p, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(p[I])...);
}

// Run it; how many arguments it takes, 0 for a fault.
template <typename... A>
int launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, void** arguments) {
    const std::function<void()> run = [&] { call(kernel, arguments, std::index_sequence_for<A...>()); };
    body = &run;
    blockDim = {block[0], block[1], 1};
    gridDim = {grid[0], grid[1], 1};
    threads = block[0] * block[1];
    fault = false;
    flushes = (std::is_same_v<std::remove_cv_t<std::remove_pointer_t<A>>, float> || ...);
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block();
    return fault ? 0 : sizeof...(A);
}

// The types of the arguments, as NumPy writes them: "f4" for a float, "*u4" for a pointer to unsigned.
template <typename A>
std::string type_name() {
    if constexpr (std::is_pointer_v<A>) return "*" + type_name<std::remove_cv_t<std::remove_pointer_t<A>>>();
    const char kind = std::is_floating_point_v<A> ? 'f' : std::is_signed_v<A> ? 'i' : 'u';
    return kind + std::to_string(sizeof(A));
}

template <typename... A>
const char* types(void (*)(A...)) {
    static const std::string all = ((type_name<A>() + " ") + ...);
    return all.c_str();
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait(on_cpu::AT_BLOCK); }
inline void __threadfence() {}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
    static T values[1024];
    const unsigned thread = on_cpu::thread(), other = thread ^ distance;
    on_cpu::fault |= mask != 0xffffffffu || other >= on_cpu::threads;
    values[thread] = value;
    on_cpu::wait(on_cpu::AT_WARP);
    const T result = values[other];
    on_cpu::wait(on_cpu::AT_WARP);
    return result;
}

template <typename T>
T atomicAdd(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
}
