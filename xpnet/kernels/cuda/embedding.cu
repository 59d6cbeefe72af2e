// Embeddings of ids and of positions. Axes: M positions in all, T of each sequence, D features.

// y = weight[id] + place[position], NaN for an id out of range; place may be null
template <typename T>
__global__ void __launch_bounds__(512) embedding(
    const T* weight, const T* place, const Int* ids, Int vocabulary, Int t, Int m, Int d, T* y) {
    for (Int at = first(); at < m * d; at += stride()) {
        Int column = at, row = divide(column, d), position = row;
        const Int id = ids[row];
        divide(position, t);
        const T a = 0 <= id && id < vocabulary ? weight[id * d + column] : T(__int_as_float(0x7fffffff));
        y[at] = place ? a + place[position * d + column] : a;
    }
}

// dweight[id] = the sum of dy where the id occurs, dplace[position] = the sum over the sequences, both in order. There is
// a block for each id, then one for each of `length` positions. A block compares up to 512 ids at a time.
template <typename T>
__global__ void __launch_bounds__(512) embedding_backward(
    const Int* ids, const T* dy, Int vocabulary, Int length, Int m, Int t, Int d, T* dweight, T* dplace) {
    __shared__ bool is_own[512];
    const Int own = blockIdx.x, position = own - vocabulary;
    for (Int start = 0; start < d; start += blockDim.x) {
        const Int column = start + threadIdx.x;
        Total<T> total;
        if (position < 0) {
            for (Int rows = 0; rows < m; rows += blockDim.x) {
                const Int count = min(m - rows, Int(blockDim.x));
                __syncthreads();  // is_own may still be read
                const bool found = threadIdx.x < count && ids[rows + threadIdx.x] == own;
                is_own[threadIdx.x] = found;
                if (!over_block<Max>(int(found))) continue;
                for (Int k = 0; k < count && column < d; ++k)
                    if (is_own[k]) total.add(dy[(rows + k) * d + column]);
            }
        } else {
            for (Int row = position; position < t && row < m && column < d; row += t) total.add(dy[row * d + column]);
        }
        if (column < d) (position < 0 ? dweight + own * d : dplace + position * d)[column] = total.sum;
    }
}
