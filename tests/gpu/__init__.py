"""Every operator of the domain `qcompile` against the reference: our CPU kernel and our CUDA kernel.

A file for each family. A test takes the fixture `machine` and says which operator it checks on which shapes:

    machine.check(linear24(bias=True), rows=(33,), n=24, k=96)

Memory that was not written, or was written beside an output, is found by the machine itself.
"""
