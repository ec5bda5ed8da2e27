"""Every packaged recipe for CUDA: nothing of the result leaves the device, with a library of kernels and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qcompile.compiler.targets import target_named
from qcompile.errors import TargetError
from qcompile.frontends.builtin_recipes import find_recipe, recipe_names
from qcompile.runtime.ops.places import VARIABLE
from tests.operators.library import cpu_library, options_with
from tests.passes.int8 import CPU, Lowered, compiled, normal
from tests.passes.llama import WIDTH, llama
from tests.sweep.harness import compile_in_memory
from tests.targets import cuda_stub
from tests.zoo import EfficientNetLite0, MiniLM

CUDA_ALONE = ["fp8-weight-only", "nvfp4"]
"""Recipes whose operators the CPU provider has not, so that nothing can be computed here."""
EDITS = [name for name in recipe_names() if any(p.changes_function for p in find_recipe(name).passes())]
"""Recipes whose answers are others on purpose; their artifacts are compared with the edited model elsewhere."""
RECIPES = [n for n in recipe_names() if n not in ("int16-activations", "kv-int8", "lora-inputs", *CUDA_ALONE, *EDITS)]
OPTIONS = {"svdquant-int4": ["svdquant.rank=4"]}
"""What recipes need for a decoder as small as this one."""
SAMPLES = [{"x": normal(1, 16, WIDTH, seed=i)} for i in range(6)]
OF_SHAPES = {"Shape", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast", "Add", "Mul", "Sub", "Div", "Range"}
STUB = [pytest.mark.cuda_stub, pytest.mark.skipif(bool(cuda_stub.why_not()), reason=cuda_stub.why_not())]

Placements = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def artifacts() -> dict[str, Lowered]:
    """A small decoder by every recipe."""
    proto, cuda = ir.to_proto(llama()), target_named("cuda")
    recipes = {name: find_recipe(name).with_overrides(OPTIONS.get(name, ())) for name in RECIPES}
    return {name: compiled(proto, SAMPLES, recipe=recipe, target=cuda) for name, recipe in recipes.items()}


def place(models: dict[str, bytes], folder: Path, library: str) -> Placements:
    """Placements of `models` by name. `library`: a path, or "off"."""
    for name, data in models.items():
        (folder / f"{name}.onnx").write_bytes(data)
    paths = [str(folder / f"{name}.onnx") for name in models]
    found = cuda_stub.run("tests.targets.cuda_artifacts", folder, *paths, **{VARIABLE: library})
    return {Path(name).stem: placement for name, placement in found.items()}


@pytest.fixture(scope="module", params=["bodies", "library"])
def placements(
    request: pytest.FixtureRequest, artifacts: dict[str, Lowered], tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, Placements]:
    """Whether there was a library of kernels, and how each artifact was placed."""
    folder, library = tmp_path_factory.mktemp("placed"), "off"
    if request.param == "library":
        try:
            library = str(cuda_stub.build_operators(folder))
        except TargetError as error:
            pytest.skip(error.what)
    return library != "off", place({name: a.data for name, a in artifacts.items()}, folder, library)


def stays_on_the_device(placement: dict[str, Any]) -> None:
    assert set(placement["free"]["elsewhere"]) <= OF_SHAPES
    assert placement["static"]["elsewhere"] == []
    for kind in ("free", "static"):
        assert not [node for node in placement[kind]["nodes"] if "Memcpy" in node]


class TestOnTheStub:
    pytestmark = STUB

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_the_whole_graph_is_on_the_device(self, recipe: str, placements: tuple[bool, Placements]) -> None:
        stays_on_the_device(placements[1][recipe])

    @pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "fp16"])
    def test_a_kernel_keeps_the_operator_and_the_proof_tells(
        self, recipe: str, placements: tuple[bool, Placements], artifacts: dict[str, Lowered]
    ) -> None:
        """Without one the body runs, which is no proof: it is slower than float."""
        with_library, placed = placements
        written = [n.op_type for n in artifacts[recipe].model.graph if n.domain == "qcompile"]
        kept = [n.removeprefix("qcompile::") for n in placed[recipe]["static"]["nodes"] if n.startswith("qcompile::")]
        assert sorted(kept) == (sorted(written) if with_library else [])
        passed, detail = placed[recipe]["proof"]
        if not written:
            assert passed
            units = len(artifacts[recipe].plan.units)
            assert f"{units} units stay in float arithmetic, as planned: {units} MatMul" in detail
            return
        assert passed is with_library
        of_weights = next((n for n in written if n.startswith("LinearW4A16")), None)
        runs = (
            f"{written.count(of_weights)} {of_weights}" if of_weights else "all 10 units run on CUDAExecutionProvider"
        )
        assert (runs if with_library else "no kernel here") in detail

    def test_weights_in_floating_point(self, tmp_path: Path) -> None:
        proto, cuda = ir.to_proto(llama()), target_named("cuda")
        made = {n: compile_in_memory(proto, SAMPLES, find_recipe(n).passes(), cuda).data for n in CUDA_ALONE}
        for name, placement in place(made, tmp_path, "off").items():
            stays_on_the_device(placement)
            assert [n for n in placement["static"]["nodes"] if "MatMulBlockQuantizedFp" in n], name

    @pytest.mark.models
    @pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "fp8-static", "fp16"])
    @pytest.mark.parametrize("model", [MiniLM, EfficientNetLite0])
    def test_real_models(self, recipe: str, model: type[MiniLM | EfficientNetLite0], tmp_path: Path) -> None:
        zoo = model()
        made = compiled(
            onnx.load(zoo.path()), zoo.calibration(4), recipe=find_recipe(recipe), target=target_named("cuda")
        )
        stays_on_the_device(place({"model": made.data}, tmp_path, "off")["model"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_answers_stay(recipe: str, artifacts: dict[str, Lowered]) -> None:
    least = {"fp8": 20, "int4": 12, "nf4": 12, "svdquant": 12}.get(recipe.split("-")[0], 27)
    assert artifacts[recipe].sqnr("y") > least


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "fp8-static"])
def test_bodies_give_what_kernels_give(recipe: str) -> None:
    """In float32: a body in float16 is computed in float32 on the CPU, where a kernel rounds."""
    import onnxruntime as ort

    exact = find_recipe(recipe).with_overrides(["precision.dtype=float32"])
    data = compiled(ir.to_proto(llama()), SAMPLES, recipe=exact, target=target_named("cuda")).data
    by_kernels, by_bodies = (
        ort.InferenceSession(data, options_with(path), providers=[CPU]).run(None, SAMPLES[0])[0]
        for path in (cpu_library(), None)
    )
    assert np.abs(by_kernels - by_bodies).max() < 0.02 * np.abs(by_bodies).max(), "a code may tip"
    assert np.abs(by_kernels - by_bodies).mean() < 1e-3 * np.abs(by_bodies).mean()


def test_16_bit_activations_are_refused_with_what_there_is() -> None:
    with pytest.raises(TargetError, match="no symmetric int16 activations") as refused:
        compiled(ir.to_proto(llama()), SAMPLES, recipe=find_recipe("int16-activations"), target=target_named("cuda"))
    assert "fp8-e4m3" in str(refused.value)
