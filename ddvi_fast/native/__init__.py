"""The five operations in C++ for the CPU: thin wrappers around the compiled library, with the functions of `reference/`."""
