// Dropout.

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
