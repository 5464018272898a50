"""CUDA and Metal kernels on the CPU: the unchanged text, compiled as C++ with one fiber per work item."""
