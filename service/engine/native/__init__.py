"""The engine's CPU kernels: C++ compiled on the machine that runs them, called through ctypes."""
