// In place of CuPy's own: threads run one at a time here, so every operation is atomic.
#pragma once

template <typename T>
T atomicMax(T* to, T value) {
    const T before = *to;
    if (value > before) *to = value;
    return before;
}

template <typename T>
T atomicMin(T* to, T value) {
    const T before = *to;
    if (value < before) *to = value;
    return before;
}
