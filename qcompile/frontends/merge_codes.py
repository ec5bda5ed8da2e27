"""An adapter goes into weights that are codes already: dequantize, add, and quantize on the same spec."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from qcompile.compiler.artifact import check_output, write_model
from qcompile.compiler.graph import nodes
from qcompile.compiler.lora.adapter import Adapter
from qcompile.compiler.lora.places import MERGE_EARLIER, Places, check_channels, check_shapes, listed
from qcompile.compiler.operators.calls import is_linear
from qcompile.compiler.reporting.wording import count
from qcompile.compiler.stored_weights import stored_weight
from qcompile.compiler.verification.noise import Noise
from qcompile.errors import DataError
from qcompile.frontends.model_file import load_model
from qcompile.passes.lower.recoding import CodedPlace, writable_places
from qcompile.passes.prepare.merge_lora import Change, filled, merge_update
from qcompile.passes.prepare.surgery import Names
from qcompile.runtime.model_header import manifest


def merge_into_codes(source: Path, adapter: Adapter, destination: Path, overwrite: bool) -> list[str]:
    """Write the artifact at `source` with `adapter` in its weights.

    Returns:
        What there is to say.

    Raises:
        DataError: what does not fit, or cannot be written anew.
    """
    check_output(destination, overwrite)
    if adapter.trained:
        raise DataError(
            f"adapter '{adapter.name}' holds whole tensors: {listed(list(adapter.trained))}",
            hint=MERGE_EARLIER,
        )
    model = load_model(source)
    known, names, noise = Places(writable_places(model)), Names(model), Noise()
    try:
        chosen = known.of(adapter)
    except DataError as error:
        raise DataError(error.what, where=error.where, hint=_unreadable(model, known) or error.hint) from None
    check_shapes(adapter, chosen)
    check_channels(adapter, {module: place.node for module, place in chosen.items()})
    changes: list[Change] = []
    for module, update in adapter.updates.items():
        place = chosen[module]
        if not isinstance(place, CodedPlace):
            changes.append(merge_update(place, update, names))
            continue
        old = place.numbers()
        wanted = update.applied(old)
        noise.add(wanted, place.write(wanted))
        changes.append(Change.of(old, wanted))
    notices = [f"adapter '{adapter.name}': {count(len(chosen), 'layer')} updated (rank {adapter.ranks})"]
    if any(isinstance(place, CodedPlace) for place in chosen.values()):
        notices.append(f"their codes were rounded anew: {noise.sqnr:.1f} dB to the merged weights")
    if any(change.fills for change in changes):
        notices.append(filled(changes))
    if any(node.op_type == "QuantizeLinear" for node in nodes(model)):
        notices.append(f"activations keep the ranges of the base; where that costs too much, {MERGE_EARLIER}")
    said = manifest(source) or {}
    write_model(model, destination, said | {"adapters": [*said.get("adapters", []), adapter.name]}, overwrite)
    return notices


def _unreadable(model: ir.Model, known: Places) -> str:
    """What to do where layers of `model` hold weights in a way that is not written anew; empty where none does."""
    found = {place.node for place in known.found}
    layers = [node for node in nodes(model) if node not in found and _holds_codes(node)]
    if not layers:
        return ""
    first = f"'{layers[0].name}' ({layers[0].op_type})"
    return f"the weights of {len(layers)} layers, such as {first}, cannot be rounded anew: {MERGE_EARLIER}"


def _holds_codes(node: ir.Node) -> bool:
    return stored_weight(node) is not None or is_linear(node) or node.op_type.startswith(("MatMulInteger", "Dynamic"))
