"""Benchmarks: qcompile beside other quantizers, on the zoo of the tests. They are not tests."""
