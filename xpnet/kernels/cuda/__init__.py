"""The kernels of CuPy, in CUDA."""
