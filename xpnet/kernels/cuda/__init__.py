"""Kernels for CuPy, in CUDA."""
