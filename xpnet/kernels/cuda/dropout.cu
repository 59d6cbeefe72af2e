// Dropout.

// lowbias32, as in ops.random_keep
__device__ unsigned hash(unsigned x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

// y = x m, where the mask m is 0 or `scale`, by a hash of the key and of the entry's index in the layer's order; and the
// next key unless it is null. Axes (..., B, C, D) are those of x in memory; a step along each changes that index by
// step_a, ..., step_d.
template <typename T>
__global__ void __launch_bounds__(512) dropout(
    const T* x, const int* key, Int least, T scale, Int size, Int b, Int c, Int d, Int step_a, Int step_b, Int step_c,
    Int step_d, T* y, int* next_key) {
    const unsigned draw = key[0], count = key[1], of_count = hash(count);
    for (Int i = first(); i < size; i += stride()) {
        Int at_d = i, at_c = divide(at_d, d), at_b = divide(at_c, c);
        const Int place = divide(at_b, b) * step_a + at_b * step_b + at_c * step_c + at_d * step_d;
        const Int bits = hash(hash(unsigned(place) ^ draw) ^ of_count) & 0xFFFFFF;
        y[i] = x[i] * (bits >= least ? scale : T(0));
    }
    if (next_key && first() == 0) {
        next_key[0] = draw;
        next_key[1] = count + 1;
    }
}
