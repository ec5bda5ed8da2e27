"""Every operator of the domain `qcompile` against a float64 reference: its body, our CPU kernel, our CUDA kernel.

A file for each family. A test takes the fixture `machine`, makes fresh random inputs, and compares:

    found = machine.run(operator, {"x": x, "w": w, ...}, constants={"w", ...})
    reference.assert_within(found["y"], expected, bound)

Memory that was not written, or was written beside an output, is found by `machine.run` itself.
"""
