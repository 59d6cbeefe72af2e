// CUDA's words for the host's compiler: a kernel's blocks one after another, and each thread of a block on a stack of
// its own, which is left at a barrier and taken up again when all others are there.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(most)

using std::exp, std::expm1, std::fabs, std::log, std::sqrt, std::tanh;

struct dim3 {
    unsigned x, y, z;
};

static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_cpu {

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool at_barrier = false;
};

static std::vector<std::unique_ptr<Fiber>> fibers;
static Fiber* current;
static ucontext_t scheduler;
static unsigned next_thread, threads;
static bool fault;  // some threads came to a barrier that others never reach, or a warp is not whole
static const std::function<void()>* body;

inline void take_threads() {
    for (;;) {
        while (next_thread < threads) {
            threadIdx = {next_thread % blockDim.x, next_thread / blockDim.x, 0};
            ++next_thread;
            (*body)();
        }
        swapcontext(&current->context, &scheduler);
    }
}

inline void barrier() {
    Fiber* own = current;
    const dim3 thread = threadIdx;
    own->at_barrier = true;
    swapcontext(&own->context, &scheduler);
    threadIdx = thread;
}

inline void resume(Fiber* fiber) {
    current = fiber;
    fiber->at_barrier = false;
    swapcontext(&scheduler, &fiber->context);
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
        resume(fibers[i].get());
    }
    for (bool up = false;; up = !up) {  // by turns the first thread first and the last: a missing barrier shows
        std::vector<Fiber*> waiting;
        for (auto& fiber : fibers)
            if (fiber->at_barrier) waiting.push_back(fiber.get());
        if (waiting.empty()) return;
        fault |= waiting.size() != threads;
        if (!up) std::reverse(waiting.begin(), waiting.end());
        for (Fiber* fiber : waiting) resume(fiber);
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

inline void __syncthreads() { on_cpu::barrier(); }
inline void __threadfence() {}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
    static T values[1024];
    const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x, other = thread ^ distance;
    on_cpu::fault |= mask != 0xffffffffu || other >= on_cpu::threads;
    values[thread] = value;
    on_cpu::barrier();
    const T result = values[other];
    on_cpu::barrier();
    return result;
}

template <typename T>
T atomicAdd(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
}
