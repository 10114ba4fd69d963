"""The six operations in C++ for the CPU: forward and backward functions around the compiled library, with the names of `kernels/`."""
