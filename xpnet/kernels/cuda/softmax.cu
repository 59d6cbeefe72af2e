// Softmax and cross-entropy.

// value = scale Σ_n [log Σ_k e^s - Σ_k t s] with s = z - max z, dz = scale (softmax(z) - t). Blocks are (32, 1 to 16):
// 32 columns, with their classes divided among the threads along y. z, dz and the target t have the strides given.
template <typename T>
__global__ void __launch_bounds__(512) softmax_cross_entropy(
    const T* z, Int z_class, Int z_row, const T* target, Int class_stride, Int row_stride, T scale, Int k, Int n,
    T* dz, volatile T* partial, unsigned* count, T* value) {
    const Int column = Int(blockIdx.x) * 32 + threadIdx.x;
    const Int classes = column < n ? k : 0;  // a thread beyond the last column has none
    const T* t = target + column * row_stride;
    T top = classes ? z[column * z_row] : T(0), sum = 0, fit = 0;
    for (Int j = threadIdx.y; j < classes; j += blockDim.y) top = Max::of(top, z[j * z_class + column * z_row]);
    top = over_column<Max>(top);
    for (Int j = threadIdx.y; j < classes; j += blockDim.y) {
        const T s = z[j * z_class + column * z_row] - top, e = exp(s);
        dz[j * z_class + column * z_row] = e;
        sum += e;
        fit += s * t[j * class_stride];
    }
    sum = over_column<Sum>(sum);
    fit = over_column<Sum>(fit);
    for (Int j = threadIdx.y; j < classes; j += blockDim.y)
        dz[j * z_class + column * z_row] = (dz[j * z_class + column * z_row] / sum - t[j * class_stride]) * scale;
    const T of_block = over_block<Sum>(classes && threadIdx.y == 0 ? log(sum) - fit : T(0));
    if (threadIdx.x == 0 && threadIdx.y == 0) partial[blockIdx.x] = of_block;
    if (!last_block(count, gridDim.x)) return;
    Total<T> total;
    for (Int i = threadIdx.y * 32 + threadIdx.x; i < gridDim.x; i += blockDim.y * 32) total.add(partial[i]);
    total.add_up();
    if (threadIdx.x == 0 && threadIdx.y == 0) *value = total.sum * scale;
}
