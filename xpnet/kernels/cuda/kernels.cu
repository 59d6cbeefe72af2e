// The kernels that kernels.py launches, for T = float and double. An activation is named as its layer is.
//
// Axes: N batch, H features, K classes. Matrices are (H, N) with a feature's batch in one row of memory: neighbouring
// threads take neighbouring numbers. A kernel over rows gives each row a block, or gridDim.y of them, the others a thread
// each number, and every thread goes on to the next that nobody has. Blocks are whole warps of 32 threads, 512 at most.

typedef long long Int;

// kernels.py puts what table.py says in the places marked @: a struct for each pointwise function, such as
//
//     struct Tanh { value(x, alpha) { return tanh(x); } back(dy, x, y, alpha) { return dy * (1 - y * y); } };
//
// and a kernel for each optimizer. A comparison with NaN is false: the formulas are written so that NaN stays NaN.

template <typename T>
__device__ T maximum(T a, T b) {
    return a < b ? b : a;
}

template <typename T>
__device__ T absolute(T a) {
    return fabs(a);
}

@pointwise

// --- what the threads of a block find together ------------------------------------------------------------------------

struct Sum {
    template <typename T> static __device__ T of(T a, T b) { return a + b; }
};

struct Max {
    template <typename T> static __device__ T of(T a, T b) { return a < b ? b : a; }
};

// The sum or maximum of all threads' values, for all of them. All must call it.
template <typename Op, typename T>
__device__ T over_block(T value) {
    __shared__ T of_warp[32];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / 32;
    for (int distance = 16; distance > 0; distance /= 2)
        value = Op::of(value, __shfl_xor_sync(0xffffffffu, value, distance));
    __syncthreads();  // of_warp may still be read, from the call before
    if (thread % 32 == 0) of_warp[thread / 32] = value;
    __syncthreads();
    T result = of_warp[0];
    for (int warp = 1; warp < warps; ++warp) result = Op::of(result, of_warp[warp]);
    return result;
}

// The same over the threads of one threadIdx.x.
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

// Whether all others of so many blocks have been here: then this one can read what their first threads wrote before.
// Adding up in the last block, in order, gives the same sum each time, as adding with atomics does not. `count` is 0
// before and after.
__device__ bool last_block(unsigned* count, unsigned blocks) {
    __shared__ bool last;
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        __threadfence();
        last = atomicAdd(count, 1u) == blocks - 1;
        if (last) *count = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// A sum within two roundings of each of its terms, however many they are (Kahan's). Its three further additions should
// cost no time beside reading the terms; that is reckoned, not measured.
template <typename T>
struct Total {
    T sum = 0, excess = 0;  // by how much rounding has made the sum too large

    __device__ void add(T a) {
        const T term = a - excess, next = sum + term, rounding = (next - sum) - term;
        excess = isfinite(rounding) ? rounding : T(0);  // an infinite sum stays so
        sum = next;
    }

    __device__ void add_up() { sum = over_block<Sum>(sum); }  // over the block
};

// Add up over a row. Whether this block has the sums: where several share the row, the last of them has, from `partial`.
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

__device__ Int first() { return Int(blockIdx.x) * blockDim.x + threadIdx.x; }

__device__ Int stride() { return Int(gridDim.x) * blockDim.x; }

// The same within a row.
__device__ Int first_of_row(Int n) { return blockIdx.x * n + Int(blockIdx.y) * blockDim.x + threadIdx.x; }

__device__ Int stride_of_row() { return Int(gridDim.y) * blockDim.x; }

// --- activation -------------------------------------------------------------------------------------------------------

// y = f(z + bias)
template <typename T, typename F>
__global__ void __launch_bounds__(512) activation(const T* z, const T* bias, T alpha, Int n, T* y) {
    const Int row = blockIdx.x, end = (row + 1) * n;
    const T shift = bias[row];
    for (Int i = first_of_row(n); i < end; i += stride_of_row()) y[i] = F::value(z[i] + shift, alpha);
}

// dz = dy f', dbias = Σ_n dz
template <typename T, typename F>
__global__ void __launch_bounds__(512) activation_backward(
    const T* dy, const T* z, const T* y, const T* bias, T alpha, Int n, T* dz, T* dbias,
    volatile T* partial, unsigned* count) {
    const Int row = blockIdx.x, end = (row + 1) * n;
    const T shift = bias[row];
    Total<T> sum[1];
    for (Int i = first_of_row(n); i < end; i += stride_of_row())
        sum[0].add(dz[i] = F::back(dy[i], z[i] + shift, y[i], alpha));
    if (add_up_row(sum, partial, count) && threadIdx.x == 0) dbias[row] = sum[0].sum;
}

// --- batch norm -------------------------------------------------------------------------------------------------------

// Where several blocks share a row, each part of a kernel is a launch of its own: all of them need what the part before
// has found. Where a row has one block, a single launch, of part 0, does all parts.
__device__ bool takes(Int part, Int launched) { return part == launched || launched == 0; }

// y = f(γ (z - μ) / √(v + eps) + β); kept for backward: centre = μ, scale = 1 / √(v + eps). z has no bias, its mean has.
// Part 1: the mean. Part 2: what a sum of large numbers has lost of it, and the variance. Part 3: y.
template <typename T, typename F>
__global__ void __launch_bounds__(512) batch_norm(
    Int part, const T* z, const T* gamma, const T* beta, const T* bias, T eps, T alpha, Int n,
    T* mean, T* var, T* centre, T* scale, T* y, volatile T* partial, unsigned* count) {
    const Int row = blockIdx.x, end = (row + 1) * n;
    T m = part > 1 ? centre[row] : T(0), s = part > 2 ? scale[row] : T(0);
    if (takes(1, part)) {
        Total<T> sum[1];
        for (Int i = first_of_row(n); i < end; i += stride_of_row()) sum[0].add(z[i]);
        if (!add_up_row(sum, partial, count)) return;
        m = sum[0].sum / n;
        if (threadIdx.x == 0) centre[row] = m;
    }
    if (takes(2, part)) {
        Total<T> sums[2];
        for (Int i = first_of_row(n); i < end; i += stride_of_row()) {
            sums[0].add(z[i] - m);
            sums[1].add((z[i] - m) * (z[i] - m));
        }
        if (!add_up_row(sums, partial, count)) return;
        const T rest = sums[0].sum / n, v = Max::of(sums[1].sum / n - rest * rest, T(0));
        m += rest;
        s = 1 / sqrt(v + eps);
        if (threadIdx.x == 0) {
            mean[row] = bias ? m + bias[row] : m;
            var[row] = v;
            centre[row] = m;
            scale[row] = s;
        }
    }
    if (takes(3, part)) {
        const T slope = s * gamma[row];
        for (Int i = first_of_row(n); i < end; i += stride_of_row())
            y[i] = F::value((z[i] - m) * slope + beta[row], alpha);
    }
}

// With du = dy f': dβ = Σ_n du, dγ = Σ_n du x̂, dz = γ / √(v + eps) (du - dβ / N - x̂ dγ / N)
// Part 1: du, in dz's place, and the sums. Part 2: dz.
template <typename T, typename F>
__global__ void __launch_bounds__(512) batch_norm_backward(
    Int part, const T* dy, const T* z, const T* y, const T* gamma, const T* beta, const T* centre, const T* scale,
    T alpha, Int n, T* dz, T* dgamma, T* dbeta, T* dbias, volatile T* partial, unsigned* count) {
    const Int row = blockIdx.x, end = (row + 1) * n;
    const T m = centre[row], s = scale[row], slope = s * gamma[row];
    T sum = part > 1 ? dbeta[row] : T(0), product = part > 1 ? dgamma[row] : T(0);
    if (takes(1, part)) {
        Total<T> sums[2];
        for (Int i = first_of_row(n); i < end; i += stride_of_row()) {
            const T du = F::back(dy[i], (z[i] - m) * slope + beta[row], y[i], alpha);
            dz[i] = du;
            sums[0].add(du);
            sums[1].add(du * (z[i] - m));
        }
        if (!add_up_row(sums, partial, count)) return;
        sum = sums[0].sum;
        product = sums[1].sum * s;
        if (threadIdx.x == 0) {
            dgamma[row] = product;
            dbeta[row] = sum;
            if (dbias) dbias[row] = 0;  // of a Dense before it: the mean takes the bias out again
        }
    }
    if (takes(2, part)) {
        const T through_mean = sum / n, through_var = product * s / n;
        for (Int i = first_of_row(n); i < end; i += stride_of_row())
            dz[i] = slope * (dz[i] - through_mean - (z[i] - m) * through_var);
    }
}

// statistics ← (1 - rate) statistics + rate batch's
template <typename T>
__global__ void __launch_bounds__(512) statistics(const T* old, const T* batch, const T* rate, Int size, T* next) {
    for (Int i = first(); i < size; i += stride()) next[i] = (1 - rate[i]) * old[i] + rate[i] * batch[i];
}

// --- dropout ----------------------------------------------------------------------------------------------------------

// lowbias32, as in ops.random_keep
__device__ unsigned hash(unsigned x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

// y = x m, where the mask m is 0 or `scale` by the bits of a number's place and the key; the next key, if asked for
template <typename T>
__global__ void __launch_bounds__(512) dropout(
    const T* x, const int* key, Int least, T scale, Int size, T* y, int* next_key) {
    const unsigned draw = key[0], count = key[1], of_count = hash(count);
    for (Int i = first(); i < size; i += stride()) {
        const Int bits = hash(hash(unsigned(i) ^ draw) ^ of_count) & 0xFFFFFF;
        y[i] = x[i] * (bits >= least ? scale : T(0));
    }
    if (next_key && first() == 0) {
        next_key[0] = draw;
        next_key[1] = count + 1;
    }
}

// --- loss -------------------------------------------------------------------------------------------------------------

// value = scale Σ_n [log Σ_k e^s - Σ_k t s] with s = z - max z, dz = scale (softmax(z) - t). Blocks (32, 1 to 16): 32
// columns, whose classes threadIdx.y shares out. Target t lies as it came.
template <typename T>
__global__ void __launch_bounds__(512) softmax_cross_entropy(
    const T* z, const T* target, Int class_stride, Int row_stride, T scale, Int k, Int n,
    T* dz, volatile T* partial, unsigned* count, T* value) {
    const Int column = Int(blockIdx.x) * 32 + threadIdx.x;
    const Int classes = column < n ? k : 0;  // a thread beyond the last column has none
    const T* t = target + column * row_stride;
    T top = classes ? z[column] : T(0), sum = 0, fit = 0;
    for (Int j = threadIdx.y; j < classes; j += blockDim.y) top = Max::of(top, z[j * n + column]);
    top = over_column<Max>(top);
    for (Int j = threadIdx.y; j < classes; j += blockDim.y) {
        const T s = z[j * n + column] - top, e = exp(s);
        dz[j * n + column] = e;
        sum += e;
        fit += s * t[j * class_stride];
    }
    sum = over_column<Sum>(sum);
    fit = over_column<Sum>(fit);
    for (Int j = threadIdx.y; j < classes; j += blockDim.y)
        dz[j * n + column] = (dz[j * n + column] / sum - t[j * class_stride]) * scale;
    const T of_block = over_block<Sum>(classes && threadIdx.y == 0 ? log(sum) - fit : T(0));
    if (threadIdx.x == 0 && threadIdx.y == 0) partial[blockIdx.x] = of_block;
    if (!last_block(count, gridDim.x)) return;
    Total<T> total;
    for (Int i = threadIdx.y * 32 + threadIdx.x; i < gridDim.x; i += blockDim.y * 32) total.add(partial[i]);
    total.add_up();
    if (threadIdx.x == 0 && threadIdx.y == 0) *value = total.sum * scale;
}

// --- optimizers -------------------------------------------------------------------------------------------------------

// next_w may be the gradient's own vector: each entry is read before it is written, by the same thread.

// g within ±clip; what is not finite stays so
template <typename T>
__device__ T clipped(T g, T clip) {
    return g < -clip ? -clip + 0 * g : g > clip ? clip + 0 * g : g;
}

template <typename T>
__device__ T square(T a) {
    return a * a;
}

// A sum of squares that cannot overflow: sum · top², top the largest so far.
template <typename T>
struct Squares {
    T top = 0, sum = 0;

    __device__ void add(T a, T times) {  // times · a², a ≥ 0
        if (a > top) {
            sum = sum * square(top / a) + times;
            top = a;
        } else {
            sum += times * (top > 0 ? square(a / top) : a);
        }
    }

    __device__ void add_up() {  // over the block
        const T largest = over_block<Max>(top);
        sum = over_block<Sum>(largest > 0 ? sum * square(top / largest) : sum);
        top = largest;
    }
};

// norm[0] = max |g|, or 1 where that is 0, and norm[1] = ‖g / norm[0]‖₂, at least 1
template <typename T>
__global__ void __launch_bounds__(512) gradient_norm(
    const T* g, T clip, Int size, volatile T* partial, unsigned* count, T* norm) {
    Squares<T> own, all;
    for (Int i = first(); i < size; i += stride()) own.add(fabs(clipped(g[i], clip)), 1);
    own.add_up();
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.x] = own.top;
        partial[2 * blockIdx.x + 1] = own.sum;
    }
    if (!last_block(count, gridDim.x)) return;
    for (Int i = threadIdx.x; i < gridDim.x; i += blockDim.x) all.add(partial[2 * i], partial[2 * i + 1]);
    all.add_up();
    if (threadIdx.x == 0) {
        const T length = sqrt(all.sum);
        norm[0] = all.top > 0 ? all.top : T(1);
        norm[1] = length < 1 ? T(1) : length;
    }
}

// g within ±clip, and all of it within clip_norm, if there is a norm
template <typename T>
__device__ T limited(T g, T clip, const T* norm, T clip_norm) {
    g = clipped(g, clip);
    return norm && norm[1] > clip_norm / norm[0] ? g / norm[0] * (clip_norm / norm[1]) : g;
}

// w - momentum v, where Nesterov takes the gradient
template <typename T>
__global__ void __launch_bounds__(512) look_ahead(const T* w, const T* v, T momentum, Int size, T* point) {
    for (Int i = first(); i < size; i += stride()) point[i] = w[i] - momentum * v[i];
}

@optimizers
