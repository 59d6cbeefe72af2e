// Functions that the kernels in the other files share, for T = float and double.
//
// Axes: N batch, H features, K classes. Matrices are (H, N), with the batch of a feature contiguous, so that adjacent
// threads take adjacent entries. A kernel over rows has one block for each row, or gridDim.y of them; other kernels have
// a thread for each entry. If there are fewer threads than entries, each takes several, a grid apart. Blocks are whole
// warps of 32 threads, with at most 512 threads. Sequences are (M, D), with M positions in all and contiguous features.

typedef long long Int;

// source.py replaces the words marked @ by code made from table.py: a struct for each pointwise function, such as
//
//     struct Tanh { value(x, alpha) { return tanh(x); } back(dy, x, y, alpha) { return dy * (1 - y * y); } };
//
// and a kernel for each optimizer. A comparison with NaN is false: the formulas are written so that NaN stays NaN.

template <typename T>
__device__ T maximum(T a, T b) {
    return a < b ? b : a;
}

template <typename T>
__device__ T where(bool condition, T a, T b) {
    return condition ? a : b;
}

template <typename T>
__device__ T absolute(T a) {
    return fabs(a);
}

// The normal distribution function at x, and its density.
template <typename T>
__device__ T normal(T x) {
    return T(0.5) + T(0.5) * erf(x * T(0.7071067811865476));
}

template <typename T>
__device__ T density(T x) {
    return T(0.3989422804014327) / exp(T(0.5) * x * x);
}

@pointwise

// --- sums and maxima over the threads of a block ---------------------------------------------------------------------

struct Sum {
    template <typename T> static __device__ T of(T a, T b) { return a + b; }
};

struct Max {
    template <typename T> static __device__ T of(T a, T b) { return a < b ? b : a; }
};

// The sum or maximum of all values in a warp, for all of its threads. All must call it.
template <typename Op, typename T>
__device__ T over_warp(T value) {
    for (int distance = 16; distance > 0; distance /= 2)
        value = Op::of(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
}

// The same over the block.
template <typename Op, typename T>
__device__ T over_block(T value) {
    __shared__ T of_warp[32];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / 32;
    value = over_warp<Op>(value);
    __syncthreads();  // of_warp may still be read, from the call before
    if (thread % 32 == 0) of_warp[thread / 32] = value;
    __syncthreads();
    T result = of_warp[0];
    for (int warp = 1; warp < warps; ++warp) result = Op::of(result, of_warp[warp]);
    return result;
}

// The same over the threads with the same threadIdx.x.
template <typename Op, typename T>
__device__ T over_column(T value) {
    __shared__ T part[16][32];
    __syncthreads();
    part[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    T result = part[0][threadIdx.x];
    for (int y = 1; y < blockDim.y; ++y) result = Op::of(result, part[y][threadIdx.x]);
    return result;
}

// Whether this block is the last of so many to get here, so that it can read what the others wrote. It then adds up in a
// fixed order, which gives the same bits each time, unlike atomics. `count` is 0 before and after.
__device__ bool last_block(unsigned* count, unsigned blocks) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        __threadfence();
        last = atomicAdd(count, 1u) == blocks - 1;
        if (last) *count = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// A compensated sum (Kahan), whose error does not grow with the number of terms. Its three extra additions should take
// no time beside reading the terms; that is an estimate, not a measurement.
template <typename T>
struct Total {
    T sum = 0, excess = 0;  // by which rounding has made the sum too large

    __device__ void add(T a) {
        const T term = a - excess, next = sum + term, rounding = (next - sum) - term;
        excess = isfinite(rounding) ? rounding : T(0);  // an infinite sum stays so
        sum = next;
    }

    __device__ void add_up() { sum = over_block<Sum>(sum); }  // over the block
};

// Sum over a row. Returns whether this block has the sums: of several for the row, the last one has, from `partial`.
template <typename T, int K>
__device__ bool add_up_row(Total<T> (&totals)[K], volatile T* partial, unsigned* count) {
    for (Total<T>& total : totals) total.add_up();
    const Int blocks = gridDim.y;
    if (blocks == 1) return true;
    partial += blockIdx.x * blocks * K;
    if (threadIdx.x == 0)
        for (int k = 0; k < K; ++k) partial[k * blocks + blockIdx.y] = totals[k].sum;
    if (!last_block(count + blockIdx.x, gridDim.y)) return false;
    for (int k = 0; k < K; ++k) {
        totals[k] = Total<T>();
        for (Int i = threadIdx.x; i < blocks; i += blockDim.x) totals[k].add(partial[k * blocks + i]);
        totals[k].add_up();
    }
    return true;
}

// Return a / b and set a to the remainder, for a, b >= 0. Numbers below 2^32 take a tenth of the instructions.
__device__ Int divide(Int& a, Int b) {
    const Int quotient = (a | b) >> 32 ? a / b : Int(unsigned(a) / unsigned(b));
    a -= quotient * b;
    return quotient;
}

// Sum columns over a grid of blocks (32, 16), with 32 columns for each along x and parts of the rows along y. Returns
// whether this thread has to write the sum of its column.
template <typename T>
__device__ bool add_up_column(Total<T>& total, Int columns, volatile T* partial, unsigned* count) {
    const Int column = Int(blockIdx.x) * 32 + threadIdx.x, blocks = gridDim.y;
    T sum = over_column<Sum>(total.sum);
    if (blocks > 1) {
        if (threadIdx.y == 0 && column < columns) partial[blockIdx.y * columns + column] = sum;
        if (!last_block(count + blockIdx.x, gridDim.y)) return false;
        total = Total<T>();
        for (Int y = threadIdx.y; y < blocks && column < columns; y += blockDim.y) total.add(partial[y * columns + column]);
        sum = over_column<Sum>(total.sum);
    }
    total.sum = sum;
    return threadIdx.y == 0 && column < columns;
}

__device__ Int first() { return Int(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ Int stride() { return Int(gridDim.x) * blockDim.x; }

// The same within a row.
__device__ Int first_of_row(Int n) { return blockIdx.x * n + Int(blockIdx.y) * blockDim.x + threadIdx.x; }

__device__ Int stride_of_row() { return Int(gridDim.y) * blockDim.x; }
