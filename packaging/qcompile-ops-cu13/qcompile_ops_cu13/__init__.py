"""The library of kernels for the operators of qcompile, built for CUDA 13; `qcompile` finds it here."""
