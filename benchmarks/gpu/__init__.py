"""Parts of benchmarks/gpu_kernels.py: shapes and their arithmetic, timing on the device, our kernels, the others."""
