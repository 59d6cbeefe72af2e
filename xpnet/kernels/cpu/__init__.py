"""The kernels of NumPy and PyTorch, in their calls and in loops that Numba compiles."""
