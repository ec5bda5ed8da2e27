"""Benchmarks: qcompile beside onnxruntime.quantization, on the zoo of the tests. They are not tests."""
