// Windows that slide over images, as those of convolutions and pools.
//
// Axes: C channels, (H, W) an image, N batch, (P, Q) the windows, (KH, KW) the taps of each; arrays lie in memory in this
// order. Along its axis, window p sees the entries s p + d i - b at the taps i = 0 ... k - 1: stride s, dilation d, b
// entries of padding before the first. A sequence is an image of one row.

#define WINDOWS int h, int w, int n, int p, int q, int kh, int kw, int sh, int sw, int dh, int dw, int top, int left

// patches (C, KH, KW, rows, Q, N): what the windows of these rows see at each tap, 0 beyond x's ends. x lies as it came.
template <typename T>
__global__ void __launch_bounds__(512) gather(
    const T* x, Int channel_stride, Int row_stride, Int column_stride, Int batch_stride, Int channels, Int first_row,
    Int rows, WINDOWS, T* patches) {
    const Int size = channels * kh * kw * rows * q * n;
    for (Int at = first(); at < size; at += stride()) {
        Int b = at, column = divide(b, n), row = divide(column, q), j = divide(row, rows), i = divide(j, kw);
        const Int channel = divide(i, kh);
        const Int u = sh * (first_row + row) + dh * i - top, v = sw * column + dw * j - left;
        const bool inside = 0 <= u && u < h && 0 <= v && v < w;
        const Int place = channel * channel_stride + u * row_stride + v * column_stride + b * batch_stride;
        patches[at] = inside ? x[place] : T(0);
    }
}

// y = each window's maximum, and the number of the tap that it is first; without numbers, the mean of its real entries
template <typename T>
__global__ void __launch_bounds__(512) pool(const T* x, Int channels, WINDOWS, T* y, int* number) {
    const Int size = channels * p * q * n;
    for (Int at = first(); at < size; at += stride()) {
        Int b = at, column = divide(b, n), row = divide(column, q);
        const Int channel = divide(row, p);
        T best = 0;
        int of_best = -1, count = 0;
        Total<T> total;
        for (int i = 0; i < kh; ++i) {
            for (int j = 0; j < kw; ++j) {
                const Int u = sh * row + dh * i - top, v = sw * column + dw * j - left;
                if (u < 0 || u >= h || v < 0 || v >= w) continue;
                const T a = x[((channel * h + u) * w + v) * n + b];
                if (of_best < 0 || a > best || isnan(a)) {
                    best = a;
                    of_best = i * kw + j;
                }
                total.add(a);
                ++count;
            }
        }
        y[at] = number ? best : total.sum / count;
        if (number) number[at] = of_best;
    }
}

// The part of dx that a window passes on to the entry that it sees at a tap: from dy of the patches, the dy of the window
// for its first maximum, or an equal share of it. (P, Q) is the window, of (rows, Q).
enum Part { OfPatches, OfMaxima, OfMeans };

template <typename T, Part part>
__device__ T passed_on(
    const T* dy, const int* number, Int tap, Int taps, Int channel, Int window, Int windows, Int entries) {
    if (part == OfPatches) return dy[(channel * taps + tap) * windows + window];
    const Int at = channel * windows + window;
    return part == OfMeans ? dy[at] / entries : number[at] == tap ? dy[at] : T(0);
}

// How many entries of an axis of this size a window without dilation has
__device__ Int entries(Int start, Int taps, Int size) { return min(start + taps, size) - max(start, Int(0)); }

// dx = the sum of what the windows of these rows pass on, tap by tap; added to dx but for the first rows
template <typename T, Part part>
__global__ void __launch_bounds__(512) spread(
    const T* dy, const int* number, Int channels, Int first_row, Int rows, WINDOWS, T* dx) {
    const Int size = channels * h * w * n;
    for (Int at = first(); at < size; at += stride()) {
        Int b = at, v = divide(b, n), u = divide(v, w);
        const Int channel = divide(u, h);
        T sum = first_row ? dx[at] : T(0);
        for (int i = 0; i < kh; ++i) {
            Int of_row = u + top - dh * i;
            const Int row = of_row < 0 ? p : divide(of_row, sh);
            if (of_row != 0 || row < first_row || row >= min(first_row + rows, Int(p))) continue;
            for (int j = 0; j < kw; ++j) {
                Int of_column = v + left - dw * j;
                const Int column = of_column < 0 ? q : divide(of_column, sw);
                if (of_column != 0 || column >= q) continue;
                const Int window = ((row - first_row) * q + column) * n + b;
                const Int real = entries(sh * row - top, kh, h) * entries(sw * column - left, kw, w);
                sum += passed_on<T, part>(dy, number, i * kw + j, kh * kw, channel, window, rows * q * n, real);
            }
        }
        dx[at] = sum;
    }
}
