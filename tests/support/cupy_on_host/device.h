// The parts of CUDA C++ that CuPy's kernels and xpnet's use, for the host's compiler. engine.cpp runs the threads.

#pragma once

#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct dim3 {
    unsigned x, y, z;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_host {

enum Place { RUNNING, AT_WARP, AT_BLOCK, READY };  // where a thread waits, for its warp or its block, or it runs

void wait(Place place);
unsigned thread();
void fault(const char* message);
unsigned count_of_threads();

template <typename... A, std::size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

template <typename... A>
void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}

// The types of a kernel's arguments in NumPy's notation, such as "f4" for a float and "*f4" for a pointer to floats.
template <typename A>
int write_type(char* to) {
    if constexpr (std::is_pointer_v<A>) {
        *to = '*';
        return 1 + write_type<std::remove_cv_t<std::remove_pointer_t<A>>>(to + 1);
    } else {
        to[0] = std::is_floating_point_v<A> ? 'f' : std::is_class_v<A> ? 'V' : std::is_signed_v<A> ? 'i' : 'u';
        to[1] = sizeof(A) > 9 ? '?' : char('0' + sizeof(A));
        to[2] = ' ';
        return 3;
    }
}

template <typename... A>
const char* types(void (*)(A...)) {
    static char all[5 * sizeof...(A) + 1];
    char* to = all;
    ((to += write_type<A>(to)), ...);
    return all;
}

}  // namespace on_host

inline void __syncthreads() { on_host::wait(on_host::AT_BLOCK); }
inline void __syncwarp(unsigned = ~0u) { on_host::wait(on_host::AT_WARP); }
inline void __threadfence() {}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int = 32) {
    static T values[1024];
    const unsigned thread = on_host::thread(), other = thread ^ distance;
    if (mask != 0xffffffffu || other >= on_host::count_of_threads())
        on_host::fault("a shuffle with threads that are not there");
    values[thread] = value;
    on_host::wait(on_host::AT_WARP);
    const T result = values[other];
    on_host::wait(on_host::AT_WARP);
    return result;
}

template <typename T>
T atomicAdd(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
}

template <typename T>
T atomicCAS(T* to, T expected, T value) {
    const T before = *to;
    if (before == expected) *to = value;
    return before;
}

template <typename A, typename B>
auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(b) : T(a);
}

template <typename A, typename B>
auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(b) < T(a) ? T(b) : T(a);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }

inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

using std::abs, std::exp, std::expm1, std::fabs, std::isfinite, std::isinf, std::isnan, std::log, std::log1p, std::pow,
    std::rint, std::signbit, std::sqrt, std::tanh;
