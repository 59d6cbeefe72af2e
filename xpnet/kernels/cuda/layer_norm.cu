// Layer norm of (M, D), over the features of each position, fused with the sum of a residual block before it.

// x^ of an entry s, from the mean of its position, a correction for the rounding of that mean, and the scale
template <typename T>
__device__ T normalised(T s, const T* centre, Int row) {
    return ((s - centre[3 * row]) - centre[3 * row + 1]) * centre[3 * row + 2];
}

// s = x + more + bias, of which `more` and bias may be null; x^ = (s - mean) scale with scale = 1 / sqrt(v + eps), and
// y = gamma x^ + beta. RMS norm has a mean of 0 and no beta. Each block takes a position at a time. With ids, x and
// `more` are the weights for ids and for the t positions, as in embedding.cu. `centre` (M, 3) is kept for `normalised`.
template <typename T>
__global__ void __launch_bounds__(512) layer_norm(
    const T* x, const T* more, const Int* ids, Int vocabulary, Int t, const T* bias, const T* gamma, const T* beta, T eps,
    Int m, Int d, T* s, T* centre, T* y) {
    for (Int row = blockIdx.x; row < m; row += gridDim.x) {
        Total<T> sum, rest, squares;
        const Int start = row * d, id = ids ? ids[row] : row, place = ids ? row % t : row;
        const bool known = !ids || (0 <= id && id < vocabulary);
        for (Int i = threadIdx.x; i < d; i += blockDim.x) {
            T a = known ? x[id * d + i] : T(__int_as_float(0x7fffffff));
            if (more) a += more[place * d + i];
            if (bias) a += bias[i];
            if (s) s[start + i] = a;
            sum.add(a);
        }
        const T* of = s ? s : x;  // each thread reads what it wrote
        T c = 0, e = 0;
        if (beta) {
            sum.add_up();
            c = sum.sum / d;
            for (Int i = threadIdx.x; i < d; i += blockDim.x) rest.add(of[start + i] - c);
            rest.add_up();
            e = rest.sum / d;
        }
        for (Int i = threadIdx.x; i < d; i += blockDim.x) {
            const T centred = (of[start + i] - c) - e;
            squares.add(centred * centred);
        }
        squares.add_up();
        const T r = 1 / sqrt(squares.sum / d + eps);
        for (Int i = threadIdx.x; i < d; i += blockDim.x)
            y[start + i] = ((of[start + i] - c) - e) * r * gamma[i] + (beta ? beta[i] : T(0));
        if (threadIdx.x == 0) {
            centre[3 * row] = c;
            centre[3 * row + 1] = e;
            centre[3 * row + 2] = r;
        }
    }
}

// With g = gamma dy: dx = (g - mean(g) - x^ mean(g x^)) scale + more, without mean(g) for RMS norm, and without `more`
// if it is null; dgamma = sum dy x^, dbeta = sum dy, dbias = sum dx. Each thread sums columns over the positions of its
// block in `partial`, with the rounding errors beside the sums; the last block adds up the sums of all blocks.
template <typename T>
__global__ void __launch_bounds__(512) layer_norm_backward(
    const T* dy, const T* more, const T* s, const T* gamma, const T* centre, Int m, Int d,
    T* dx, T* copy, T* dgamma, T* dbeta, T* dbias, volatile T* partial, unsigned* count) {
    volatile T* own = partial + Int(blockIdx.x) * 6 * d;
    for (Int i = threadIdx.x; i < 6 * d; i += blockDim.x) own[i] = 0;  // the sums over a row have barriers
    for (Int row = blockIdx.x; row < m; row += gridDim.x) {
        const Int start = row * d;
        const T r = centre[3 * row + 2];
        Total<T> sum, product;
        for (Int i = threadIdx.x; i < d; i += blockDim.x) {
            const T g = gamma[i] * dy[start + i];
            sum.add(g);
            product.add(g * normalised(s[start + i], centre, row));
        }
        sum.add_up();
        product.add_up();
        const T through_mean = dbeta ? sum.sum / d : T(0), through_scale = product.sum / d;
        for (Int i = threadIdx.x; i < d; i += blockDim.x) {
            const T dn = dy[start + i], normal = normalised(s[start + i], centre, row);
            T a = (gamma[i] * dn - through_mean - normal * through_scale) * r;
            if (more) a += more[start + i];
            dx[start + i] = a;
            if (copy) copy[start + i] = a;
            const T terms[] = {dn * normal, dn, a};
            for (int k = 0; k < 3; ++k) {
                Total<T> total{own[k * d + i], own[(3 + k) * d + i]};
                total.add(terms[k]);
                own[k * d + i] = total.sum;
                own[(3 + k) * d + i] = total.excess;
            }
        }
    }
    if (!last_block(count, gridDim.x)) return;
    for (Int i = threadIdx.x; i < 3 * d; i += blockDim.x) {
        Total<T> total;
        for (Int block = 0; block < gridDim.x; ++block) total.add(partial[block * 6 * d + i]);
        T* to = i < d ? dgamma : i < 2 * d ? dbeta : dbias;
        if (to) to[i % d] = total.sum;
    }
}
