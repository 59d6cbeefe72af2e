// A bias and a pointwise function, or one of them.

// y = f(z + bias); the bias may be null
template <typename T, typename F>
__global__ void __launch_bounds__(512) pointwise(const T* z, const T* bias, T alpha, Int n, T* y) {
    const Int row = blockIdx.x, end = (row + 1) * n;
    const T shift = bias ? bias[row] : T(0);
    for (Int i = first_of_row(n); i < end; i += stride_of_row()) y[i] = F::value(z[i] + shift, alpha);
}

// dz = dy f', dbias = Σ_n dz
template <typename T, typename F>
__global__ void __launch_bounds__(512) pointwise_backward(
    const T* dy, const T* z, const T* y, const T* bias, T alpha, Int n, T* dz, T* dbias,
    volatile T* partial, unsigned* count) {
    const Int row = blockIdx.x, end = (row + 1) * n;
    const T shift = bias ? bias[row] : T(0);
    Total<T> sum[1];
    for (Int i = first_of_row(n); i < end; i += stride_of_row())
        sum[0].add(dz[i] = F::back(dy[i], z[i] + shift, y[i], alpha));
    if (dbias && add_up_row(sum, partial, count) && threadIdx.x == 0) dbias[row] = sum[0].sum;
}

// The same for (M, H): y = f(z + bias)
template <typename T, typename F>
__global__ void __launch_bounds__(512) pointwise_columns(const T* z, const T* bias, T alpha, Int m, Int h, T* y) {
    for (Int i = first(); i < m * h; i += stride()) {
        Int column = i;
        divide(column, h);
        y[i] = F::value(z[i] + (bias ? bias[column] : T(0)), alpha);
    }
}

// dz = dy f', dbias = Σ_m dz, in a grid for `add_up_column`
template <typename T, typename F>
__global__ void __launch_bounds__(512) pointwise_columns_backward(
    const T* dy, const T* z, const T* y, const T* bias, T alpha, Int m, Int h, T* dz, T* dbias,
    volatile T* partial, unsigned* count) {
    const Int column = Int(blockIdx.x) * 32 + threadIdx.x, step = Int(gridDim.y) * blockDim.y;
    const T shift = bias && column < h ? bias[column] : T(0);
    Total<T> sum;
    for (Int row = Int(blockIdx.y) * blockDim.y + threadIdx.y; row < m && column < h; row += step) {
        const Int i = row * h + column;
        sum.add(dz[i] = F::back(dy[i], z[i] + shift, y[i], alpha));
    }
    if (dbias && add_up_column(sum, h, partial, count)) dbias[column] = sum.sum;
}
