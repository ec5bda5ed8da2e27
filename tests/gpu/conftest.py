"""Each test of an operator runs wherever it can: its body, our CPU kernel, our CUDA kernel.

`pytest tests/gpu -m gpu` runs the CUDA half; without a GPU that is skipped, and the reason is told.
"""

from __future__ import annotations

import pytest

from tests.gpu.machine import Machine, why_no_gpu


@pytest.fixture(params=["body", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Where the operator of a test runs."""
    return _cuda() if request.param == "cuda" else Machine("body", None)


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu)])
def cuda() -> Machine:
    """The CUDA kernels, for what the others do not do."""
    return _cuda()


def _cuda() -> Machine:
    if reason := why_no_gpu():
        pytest.skip(reason)
    raise NotImplementedError
