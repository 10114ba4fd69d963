"""CUDA C++ kernels for the chain of small batches, compiled at run time by NVRTC; sources in csrc/cuda/, names as in `kernels/`."""
