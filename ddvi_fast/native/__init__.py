"""The six operations in C++ for the CPU: plain forward and backward functions around the compiled library, those of `kernels/`."""
