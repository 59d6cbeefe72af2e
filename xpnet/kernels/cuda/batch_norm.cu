// Batch norm and a pointwise function.

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
__global__ void __launch_bounds__(512) averaged(const T* old, const T* batch, const T* rate, Int size, T* next) {
    for (Int i = first(); i < size; i += stride()) next[i] = (1 - rate[i]) * old[i] + rate[i] * batch[i];
}
