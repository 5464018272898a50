"""CUDA through CuPy: NVRTC, streams, memory pool, graphs."""
