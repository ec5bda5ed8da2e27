"""Whole models in half precision on a GPU: the answers are those of float32."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from qcompile.compiler.targets import target_named
from qcompile.frontends.builtin_recipes import find_recipe
from qcompile.runtime.providers import CUDA, open_session, provider_options
from tests.gpu.machine import why_not_on_gpu
from tests.sweep.harness import compile_in_memory, session
from tests.targets.half_models import MODELS, half_model

CLOSE = {"float16": 1e-2, "bfloat16": 6e-2}
"""Of the largest answer; a dozen roundings to 11 and to 8 bits."""


@pytest.mark.gpu
@pytest.mark.skipif(bool(why_not_on_gpu()), reason=why_not_on_gpu())
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", MODELS)
def test_answers_stay(name: str, dtype: str) -> None:
    model, sample = half_model(name), MODELS[name][1]
    recipe = find_recipe("fp16").with_overrides([f"precision.dtype={dtype}"])
    data = compile_in_memory(model, [sample], recipe.passes(), target_named("cuda")).data
    options = onnxruntime.SessionOptions()
    opened = open_session(data, options, CUDA, provider_options(CUDA, 0, None))
    [expected] = session(model.SerializeToString(), optimized=False).run(None, sample)
    [got] = opened.run(None, sample)
    assert got.dtype == expected.dtype
    assert np.abs(got - expected).max() <= CLOSE[dtype] * np.abs(expected).max()
