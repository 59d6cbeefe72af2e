// A device simulated on the host: its memory, with checks for misuse, and its threads, which run one at a time.
//
// The blocks of a kernel run one after another. The threads of a block run in turn, each until a barrier or a shuffle.
// Both orders are random, so that a kernel that depends on an order, or lacks a barrier, gives other results. A waiting
// thread keeps its stack. New memory is filled with NaN; freed memory and the margins around each allocation are, too,
// and are checked for writes.

#include <ucontext.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <csetjmp>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "device.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_host {

static std::string message;  // of the first fault since the last call
static std::mt19937 order;

void fault(const char* what) {
    if (message.empty()) message = what;
}

// --- memory -----------------------------------------------------------------------------------------------------------

constexpr std::size_t MARGIN = 512, KEPT = 1 << 26;  // bytes around an allocation; of freed memory still checked
constexpr unsigned char NAN_BYTE = 0xff;

struct Freed {
    char* start;
    std::size_t size;
};

struct Allocation {
    std::size_t size;
    int device;
};

static std::map<char*, Allocation> live;
static std::deque<Freed> freed;
static std::size_t freed_bytes;

inline bool untouched(const char* from, std::size_t size) {
    return static_cast<unsigned char>(*from) == NAN_BYTE && !std::memcmp(from, from + 1, size - 1);
}

inline void check_margins() {
    for (const auto& [start, allocation] : live) {
        const std::size_t size = allocation.size;
        if (!untouched(start - MARGIN, MARGIN) || !untouched(start + size, MARGIN)) {
            fault("memory outside an array was written to");
            std::fill(start - MARGIN, start, NAN_BYTE);
            std::fill(start + size, start + size + MARGIN, NAN_BYTE);
        }
    }
}

inline void drop_freed() {
    const Freed oldest = freed.front();
    freed.pop_front();
    freed_bytes -= oldest.size;
    if (!untouched(oldest.start - MARGIN, oldest.size + 2 * MARGIN)) fault("memory was written to after it was freed");
    std::free(oldest.start - MARGIN);
}

// --- threads ----------------------------------------------------------------------------------------------------------

struct Fiber {  // a stack, which threads use one after another, until one of them waits
    ucontext_t start;
    std::jmp_buf place;  // _setjmp and _longjmp switch between stacks in use without a system call
    bool begun = false;
    std::vector<char> stack = std::vector<char>(1 << 16);
};

struct Warp {  // the threads that wait, which go on when all of them wait, and what they wait for
    unsigned size;
    std::vector<Fiber*> waiting;
    Place place;
};

static std::vector<std::unique_ptr<Fiber>> fibers;
static std::vector<Warp> warps;
static unsigned at_block, at_all;  // numbers of threads that wait at a barrier of the block, and at any
static Fiber* current;
static ucontext_t scheduler;
static std::jmp_buf in_scheduler;
static std::vector<unsigned> turns;  // the threads in the order in which they start
static unsigned begun;
static void (*body)(void**);
static void** arguments;

unsigned thread() { return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x; }

unsigned count_of_threads() { return static_cast<unsigned>(turns.size()); }

// Flush subnormal numbers to 0, as in the kernels that CuPy compiles.
static void flush(bool on) {
#ifdef __SSE__
    _mm_setcsr(on ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040);
#endif
}

static void leave() {  // return to the scheduler, until this stack is resumed
    if (!_setjmp(current->place)) _longjmp(in_scheduler, 1);
}

static void run_threads() {
    for (;;) {
        while (begun < turns.size()) {
            const unsigned number = turns[begun++];
            threadIdx = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
            body(arguments);
        }
        leave();
    }
}

static void resume(Fiber* fiber) {
    current = fiber;
    if (_setjmp(in_scheduler)) return;
    if (fiber->begun) _longjmp(fiber->place, 1);
    fiber->begun = true;
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = fiber->stack.data();
    fiber->start.uc_stack.ss_size = fiber->stack.size();
    makecontext(&fiber->start, run_threads, 0);
    swapcontext(&scheduler, &fiber->start);
}

void wait(Place place) {
    const dim3 index = threadIdx;
    Warp& warp = warps[thread() / 32];
    if (!warp.waiting.empty() && warp.place != place) fault("threads of a warp wait at different barriers");
    warp.place = place;
    warp.waiting.push_back(current);
    at_block += place == AT_BLOCK;
    ++at_all;
    leave();
    threadIdx = index;
}

// Let a warp go on if all of its threads wait, and return whether it did.
static bool release(Warp& warp) {
    if (warp.place == AT_BLOCK || warp.waiting.size() != warp.size) return false;
    static std::vector<Fiber*> going;
    going.clear();
    going.swap(warp.waiting);
    at_all -= going.size();
    std::shuffle(going.begin(), going.end(), order);
    for (Fiber* fiber : going) resume(fiber);
    return true;
}

static void run_block() {
    begun = at_block = at_all = 0;
    warps.clear();
    for (std::size_t left = turns.size(); left; left -= warps.back().size)
        warps.push_back({static_cast<unsigned>(std::min<std::size_t>(32, left)), {}, AT_WARP});
    std::vector<unsigned> numbers(warps.size());
    std::iota(numbers.begin(), numbers.end(), 0u);
    for (std::size_t i = 0; begun < turns.size(); ++i) {
        if (i == fibers.size()) fibers.push_back(std::make_unique<Fiber>());
        resume(fibers[i].get());
    }
    while (at_all) {
        bool moved = false;
        if (at_block == turns.size()) {
            for (Warp& warp : warps) warp.place = READY;
            at_block = 0;
        }
        std::shuffle(numbers.begin(), numbers.end(), order);
        for (unsigned number : numbers)  // each as far as it gets before the next one runs
            while (release(warps[number])) moved = true;
        if (moved) continue;
        fault("threads wait at a barrier for others that never come");
        fibers.clear();
        return;
    }
}

}  // namespace on_host

using namespace on_host;

extern "C" {

// `device` is -1 for pinned memory of the host.
void* allocate(std::size_t size, int device) {
    char* start = static_cast<char*>(std::aligned_alloc(MARGIN, (size + 3 * MARGIN - 1) / MARGIN * MARGIN));
    if (!start) return nullptr;
    std::memset(start, NAN_BYTE, size + 2 * MARGIN);
    live[start + MARGIN] = {size, device};
    return start + MARGIN;
}

void release_memory(char* start) {
    const auto found = live.find(start);
    if (found == live.end()) return fault("memory was freed that was not allocated, or is freed already");
    check_margins();
    const std::size_t size = found->second.size;
    live.erase(found);
    std::memset(start - MARGIN, NAN_BYTE, size + 2 * MARGIN);
    freed.push_back({start, size});
    freed_bytes += size;
    while (freed_bytes > KEPT) drop_freed();
}

// Whether [start, start + size) is within one live allocation on this device, or on any device for -1.
int holds(int device, char* start, std::size_t size) {
    auto after = live.upper_bound(start);
    if (after == live.begin()) return 0;
    const auto& [from, allocation] = *--after;
    return start + size <= from + allocation.size && (device < 0 || device == allocation.device);
}

// Run a kernel; if `alone`, with a single thread, for a kernel without barriers whose threads loop over all entries.
void launch(void (*kernel)(void**), const unsigned* grid, const unsigned* block, void** given, int in_float, int alone) {
    body = kernel;
    arguments = given;
    flush(in_float);
    if (alone) {
        blockDim = gridDim = {1, 1, 1};
        threadIdx = blockIdx = {0, 0, 0};
        kernel(given);
        flush(false);
        return check_margins();
    }
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    turns.resize(std::size_t(block[0]) * block[1] * block[2]);
    std::iota(turns.begin(), turns.end(), 0u);
    std::vector<unsigned> blocks(std::size_t(grid[0]) * grid[1] * grid[2]);
    std::iota(blocks.begin(), blocks.end(), 0u);
    std::shuffle(blocks.begin(), blocks.end(), order);
    std::shuffle(turns.begin(), turns.end(), order);
    for (unsigned number : blocks) {
        blockIdx = {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]};
        run_block();
    }
    flush(false);
    check_margins();
}

// Return the first fault since the last call, "" if there is none.
const char* take_fault() {
    static std::string taken;
    taken.clear();
    std::swap(taken, message);
    return taken.c_str();
}

}  // extern "C"
