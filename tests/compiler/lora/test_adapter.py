"""Reading and writing adapters; the faults that such a folder can have."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from qcompile.compiler.lora.adapter import read_adapter, write_adapter
from qcompile.errors import DataError
from tests.passes.adapters import low_rank, write


def test_an_update_is_the_scaled_product(tmp_path: Path) -> None:
    """s B A with s = alpha / r; alpha may be that of a pattern, and r is that of the tensors."""
    tensors = low_rank("a.q", 6, 8) | low_rank("b.q", 6, 8, rank=3, seed=1)
    found = read_adapter(write(tmp_path / "it", tensors, lora_alpha=5, alpha_pattern={"b.q": 7}))
    assert found.name == "it"
    assert found.ranks == "2 to 3"
    for module, scale in (("a.q", 5 / 2), ("b.q", 7 / 3)):
        want = scale * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        np.testing.assert_allclose(found.updates[module].delta(), want, rtol=1e-6)
        assert found.updates[module].shape == (6, 8)


def test_rank_stabilized_scale(tmp_path: Path) -> None:
    found = read_adapter(write(tmp_path, low_rank("q", 6, 8, rank=4), lora_alpha=3, use_rslora=True))
    assert found.updates["q"].scale == pytest.approx(3 / sqrt(4))


def test_convolutions_and_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "conv.lora_A.weight": rng.standard_normal((2, 3, 5, 5)).astype(np.float32),
        "conv.lora_B.weight": rng.standard_normal((4, 2, 1, 1)).astype(np.float32),
        "emb.lora_embedding_A": rng.standard_normal((2, 10)).astype(np.float32),
        "emb.lora_embedding_B": rng.standard_normal((8, 2)).astype(np.float32),
    }
    found = read_adapter(write(tmp_path, tensors)).updates
    down, up = tensors["conv.lora_A.weight"], tensors["conv.lora_B.weight"][:, :, 0, 0]
    np.testing.assert_allclose(found["conv"].delta(), 2 * np.einsum("nr,rchw->nchw", up, down), rtol=1e-5)
    table = 2 * (tensors["emb.lora_embedding_B"] @ tensors["emb.lora_embedding_A"]).T
    np.testing.assert_allclose(found["emb"].delta(), table, rtol=1e-5)


def test_magnitudes_give_the_rows_their_length(tmp_path: Path) -> None:
    tensors = low_rank("q", 6, 8) | {"q.lora_magnitude_vector": np.arange(1, 7, dtype=np.float32)}
    update = read_adapter(write(tmp_path, tensors)).updates["q"]
    new = update.applied(np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), np.arange(1, 7), rtol=1e-5)


def test_bfloat16_is_read(tmp_path: Path) -> None:
    exact = low_rank("q", 6, 8)
    stored = {name: array.astype(ml_dtypes.bfloat16) for name, array in exact.items()}
    found = read_adapter(write(tmp_path, stored)).updates["q"]
    np.testing.assert_array_equal(found.down, stored["q.lora_A.weight"].astype(np.float32))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    given = read_adapter(write(tmp_path / "a", low_rank("x.q", 6, 8), lora_alpha=3)).updates
    write_adapter(tmp_path / "b", given, "model.onnx")
    found = read_adapter(tmp_path / "b").updates
    np.testing.assert_array_equal(found["x.q"].delta(), given["x.q"].delta())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"trainable_token_indices": [1]}, "single rows"),
        ({"init_lora_weights": "pissa_niter_4"}, "a base that its initialization"),
        ({"init_lora_weights": "loftq"}, "a base that its initialization"),
        ({"lora_alpha": float("inf")}, "lora_alpha: input should be a finite number"),
        ({"lora_alpha": None}, "lora_alpha: input should be a valid number"),
        ({"alpha_pattern": {"(": 1}}, "valid regular expression"),
        ({"alpha_pattern": [1]}, "alpha_pattern: input should be a valid dictionary"),
    ],
)
def test_configurations_that_are_refused(config: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        read_adapter(write(tmp_path, low_rank("q", 6, 8), **config))


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no LoRA adapter"):
        read_adapter(tmp_path)
    with pytest.raises(DataError, match="no LoRA adapter"):
        read_adapter(write(tmp_path / "file", low_rank("q", 6, 8)) / "adapter_model.safetensors")
    whole = low_rank("q", 6, 8)
    half = {"q.lora_A.weight": whole["q.lora_A.weight"]}
    with pytest.raises(DataError, match="'q' of the adapter has no lora_B"):
        read_adapter(write(tmp_path, half))
    with pytest.raises(DataError, match=r"ranks of module 'q' do not match: A is \[2, 8\], B is \[6, 3\]"):
        read_adapter(write(tmp_path, half | {"q.lora_B.weight": np.ones((6, 3), np.float32)}))
    with pytest.raises(DataError, match="magnitudes \\[5\\] for 6 rows"):
        read_adapter(write(tmp_path, whole | {"q.lora_magnitude_vector": np.ones(5, np.float32)}))
    with pytest.raises(DataError, match="of rank 0"):
        read_adapter(write(tmp_path, low_rank("q", 6, 8, rank=0)))
    with pytest.raises(DataError, match="of type I64"):
        read_adapter(write(tmp_path, half | {"q.lora_B.weight": np.ones((6, 2), np.int64)}))
    with pytest.raises(DataError, match="adapter is empty"):
        read_adapter(write(tmp_path, {}))
    with pytest.raises(DataError, match="'lora_C' of module 'q' is not known"):
        read_adapter(write(tmp_path, whole | {"q.lora_C.weight": np.ones(1, np.float32)}))
    with pytest.raises(DataError, match="is not finite"):
        read_adapter(write(tmp_path, whole | {"q.lora_B.weight": np.full((6, 2), np.nan, np.float32)}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(DataError, match="damaged"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(DataError, match="safe_serialization"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps([]))
    with pytest.raises(DataError, match="of type None"):
        read_adapter(tmp_path)
