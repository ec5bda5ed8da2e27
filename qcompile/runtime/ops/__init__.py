"""The native kernels of the operators of domain `qcompile`: their sources, building them, loading them."""
