"""Each test of an operator runs wherever it can: its body, our CPU kernel, our CUDA kernel.

`pytest tests/gpu -m gpu` runs the CUDA half; without a GPU that is skipped, and the reason is told.
"""

from __future__ import annotations

import pytest

from tests.gpu.machine import Machine


@pytest.fixture(params=["body"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Where the operator of a test runs."""
    return Machine(str(request.param), None)
