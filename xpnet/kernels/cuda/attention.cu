// Causal and other attention, from the product [Q K V] without its bias.
//
// Axes: N sequences, T positions (t), E = heads d features, d of each head, at most D. Rows of qkv are (3, heads, d), and
// those of o and its derivative (heads, d). Blocks are (32, 8), with a warp for each of 8 positions of a head in a
// sequence. A warp takes the positions that its own attends to, or that attend to it, 32 at a time, one for each lane.

// Load a head's part of some rows into a tile of shared memory, with 0 beyond the last position.
template <typename T, int D>
__device__ void load(
    const T* a, const T* bias, T factor, Int width, Int first_row, Int t, Int d, int rows, T (*tile)[D + 1]) {
    for (int row = threadIdx.y; row < rows; row += 8)
        for (Int c = threadIdx.x; c < d; c += 32)
            tile[row][c] = first_row + row < t ? (a[(first_row + row) * width + c] + (bias ? bias[c] : T(0))) * factor
                                               : T(0);
}

template <typename T>
__device__ T dot(const T* a, const T* b, Int d) {
    T sum = 0;
    for (Int c = 0; c < d; ++c) sum += a[c] * b[c];
    return sum;
}

// For a position i: s_j = q_i k_j / sqrt(d), p = softmax(s), o_i = sum_j p_j v_j, and logs = log sum_j e^{s_j}. The sums
// are scaled by e^-top, with top the largest s so far, and rescaled when it grows.
template <typename T, int D>
__global__ void __launch_bounds__(256) attention(
    const T* qkv, const T* bias, T scale, Int t, Int heads, Int d, Int causal, T* o, T* logs) {
    __shared__ T own[8][D + 1], keys[32][D + 1], values[32][D + 1], weights[8][32];
    const Int tiles = (t + 7) / 8, e = heads * d;
    Int tile = blockIdx.x, head = divide(tile, tiles), sequence = divide(head, heads);
    const int lane = threadIdx.x, warp = threadIdx.y;
    const T* rows = qkv + sequence * t * 3 * e + head * d;
    const T* shift = bias + head * d;
    const Int i = tile * 8 + warp, end = causal ? min(tile * 8 + 8, t) : t;
    const T lowest = -__int_as_float(0x7f800000);
    T top = lowest, sum = 0, total[D / 32] = {};
    load<T, D>(rows, shift, scale, 3 * e, tile * 8, t, d, 8, own);
    for (Int start = 0; start < end; start += 32) {
        __syncthreads();
        load<T, D>(rows + e, shift + e, T(1), 3 * e, start, t, d, 32, keys);
        load<T, D>(rows + 2 * e, shift + 2 * e, T(1), 3 * e, start, t, d, 32, values);
        __syncthreads();
        const bool seen = start + lane < t && !(causal && start + lane > i);
        const T s = seen ? dot(own[warp], keys[lane], d) : lowest;
        const T next = Max::of(top, over_warp<Max>(s)), kept = exp(top - next), p = seen ? exp(s - next) : T(0);
        top = next;
        sum = sum * kept + over_warp<Sum>(p);
        weights[warp][lane] = p;
        __syncwarp();
        for (int k = 0; k < D / 32; ++k) {
            if (lane + 32 * k >= d) continue;
            T a = total[k] * kept;
            for (int j = 0; j < 32; ++j) a += weights[warp][j] * values[j][lane + 32 * k];
            total[k] = a;
        }
    }
    if (i >= t) return;
    for (int k = 0; k < D / 32; ++k)
        if (lane + 32 * k < d) o[(sequence * t + i) * e + head * d + lane + 32 * k] = total[k] / sum;
    if (lane == 0) logs[(sequence * heads + head) * t + i] = top + log(sum);
}

// With p from s and logs, dp_ij = do_i v_j, r_i = do_i o_i and ds = p (dp - r): dq = sum_j ds_ij k_j / sqrt(d) in the blocks
// of blockIdx.y 0, and dk_j = sum_i ds_ij q_i / sqrt(d), dv_j = sum_i p_ij do_i in the others. dbias = sum_m [dq 0 dv].
template <typename T, int D>
__global__ void __launch_bounds__(256) attention_backward(
    const T* qkv, const T* bias, const T* o, const T* dout, const T* logs, T scale, Int t, Int heads, Int d, Int causal,
    Int n, T* dqkv, T* dbias, volatile T* partial, unsigned* count) {
    __shared__ T own[8][D + 1], of_own[8][D + 1], them[32][D + 1], of_them[32][D + 1];
    __shared__ T weights[8][32], slopes[8][32], rest[32], log_sums[32];
    const Int tiles = (t + 7) / 8, e = heads * d;
    Int tile = blockIdx.x, head = divide(tile, tiles), sequence = divide(head, heads);
    const int lane = threadIdx.x, warp = threadIdx.y;
    const bool of_keys = blockIdx.y;
    const T* rows = qkv + sequence * t * 3 * e + head * d;
    const T* shift = bias + head * d;
    const T *outputs = o + sequence * t * e + head * d, *slope = dout + sequence * t * e + head * d;
    const T* sums = logs + (sequence * heads + head) * t;
    const Int i = tile * 8 + warp;
    const Int start_of = of_keys && causal ? tile * 8 / 32 * 32 : 0, end = !of_keys && causal ? min(tile * 8 + 8, t) : t;
    T first[D / 32] = {}, second[D / 32] = {}, own_rest = 0;
    if (of_keys) {
        load<T, D>(rows + e, shift + e, T(1), 3 * e, tile * 8, t, d, 8, own);
        load<T, D>(rows + 2 * e, shift + 2 * e, T(1), 3 * e, tile * 8, t, d, 8, of_own);
    } else {
        load<T, D>(rows, shift, scale, 3 * e, tile * 8, t, d, 8, own);
        load<T, D>(slope, nullptr, T(1), e, tile * 8, t, d, 8, of_own);
        for (Int c = lane; c < d && i < t; c += 32) own_rest += slope[i * e + c] * outputs[i * e + c];
        own_rest = over_warp<Sum>(own_rest);
    }
    for (Int start = start_of; start < end; start += 32) {
        __syncthreads();
        if (of_keys) {
            load<T, D>(rows, shift, scale, 3 * e, start, t, d, 32, them);
            load<T, D>(slope, nullptr, T(1), e, start, t, d, 32, of_them);
            for (int row = warp; row < 32; row += 8) {
                T sum = 0;
                for (Int c = lane; c < d && start + row < t; c += 32)
                    sum += slope[(start + row) * e + c] * outputs[(start + row) * e + c];
                sum = over_warp<Sum>(sum);
                if (lane == 0) rest[row] = sum;
                if (lane == 0) log_sums[row] = start + row < t ? sums[start + row] : T(0);
            }
        } else {
            load<T, D>(rows + e, shift + e, T(1), 3 * e, start, t, d, 32, them);
            load<T, D>(rows + 2 * e, shift + 2 * e, T(1), 3 * e, start, t, d, 32, of_them);
        }
        __syncthreads();
        const Int query = of_keys ? start + lane : i, key = of_keys ? i : start + lane;
        const bool seen = query < t && key < t && !(causal && key > query);
        T p = 0, ds = 0;
        if (seen) {
            p = exp(dot(own[warp], them[lane], d) - (of_keys ? log_sums[lane] : sums[query]));
            ds = p * (dot(of_own[warp], of_them[lane], d) - (of_keys ? rest[lane] : own_rest));
        }
        weights[warp][lane] = p;
        slopes[warp][lane] = ds;
        __syncwarp();
        for (int k = 0; k < D / 32; ++k) {
            const Int c = lane + 32 * k;
            if (c >= d) continue;
            for (int j = 0; j < 32; ++j) {
                first[k] += slopes[warp][j] * them[j][c];
                if (of_keys) second[k] += weights[warp][j] * of_them[j][c];
            }
        }
    }
    T* to = dqkv + (sequence * t + i) * 3 * e + head * d;
    for (int k = 0; k < D / 32; ++k) {
        const Int c = lane + 32 * k;
        if (c >= d) continue;
        const T dx = of_keys ? first[k] : first[k] * scale;
        if (i < t) to[(of_keys ? e : 0) + c] = dx;
        if (i < t && of_keys) to[2 * e + c] = second[k];
        own[warp][c] = i < t ? (of_keys ? second[k] : dx) : T(0);
    }
    __syncthreads();
    volatile T* sums_of_block = partial + ((sequence * tiles + tile) * 2 + of_keys) * e + head * d;
    for (Int c = lane; c < d && warp == 0; c += 32) {
        T sum = 0;
        for (int row = 0; row < 8; ++row) sum += own[row][c];
        sums_of_block[c] = sum;
    }
    if (!last_block(count, gridDim.x * 2)) return;
    for (Int c = warp * 32 + lane; c < e; c += 256) {
        Total<T> of_queries, of_values;
        for (Int block = 0; block < n * tiles; ++block) {
            of_queries.add(partial[block * 2 * e + c]);
            of_values.add(partial[(block * 2 + 1) * e + c]);
        }
        dbias[c] = of_queries.sum;
        dbias[e + c] = 0;  // a bias of keys moves all of a row of s alike
        dbias[2 * e + c] = of_values.sum;
    }
}
