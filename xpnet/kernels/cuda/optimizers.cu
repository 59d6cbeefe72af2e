// The optimizers.

// next_w may be the gradient's vector, since a thread reads an entry before it writes it.

// g clipped to ±clip; NaN and infinity do not become finite
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

// g clipped to ±clip, and the gradient scaled to clip_norm unless `norm` is null
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
