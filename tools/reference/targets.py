"""docs/targets.md: the capability tables with their evidence."""

from __future__ import annotations

from qcompile.compiler.plan import Form
from qcompile.compiler.targets import TARGETS
from qcompile.compiler.targets.cuda import CUDA, LANDINGS
from qcompile.compiler.targets.table import Cost, Formats, Row, Target
from tools.reference.markdown import GENERATED, table

_HEAD = """
# Targets and their evidence

A target is a table: which operators a provider executes in low precision, in which pattern, and how we know.
Placement, lowering and the proof of dispatch read the same table. Tests hold the tables against the runtime.

Costs are nanoseconds on one core of the machine named in the evidence; only their ratios matter, and they decide
where a conversion between float and codes pays. *Seen as* lists the operators of the runtime's optimized graph that
count as proof.
"""

_WIDE = "---\nhide: [toc]\n---\n"
_COSTS = ("Cost in float", "Cost in int8")


def page() -> str:
    """The text of the page."""
    return _WIDE + GENERATED + _HEAD + "".join(_target(t) for t in TARGETS.values())


def _target(target: Target) -> str:
    facts = [
        f"- Providers: {', '.join(f'`{p}`' for p in target.providers)}",
        f"- Unless asked otherwise: activations {target.activation}; weights {target.weight}",
        f"- Bias: {'float' if target.float_bias else 'int32'}",
        f"- Placement: {target.placement}",
        f"- Evidence: {target.evidence}",
    ]
    if target.half.dtype is None:
        facts.append(f"- Half precision: none, {target.half.refusal}")
    if target.merging is not None:
        apart = ", ".join(sorted(target.merging.activations))
        facts.append(
            f"- Linear layers of one input become one product, where their columns are a multiple of "
            f"{target.merging.multiple} and none of {apart} follows; {target.merging.evidence}"
        )
    if target.sparse is not None:
        facts.append(
            f"- Linear layers with N a multiple of {target.sparse.outputs}, K of {target.sparse.inputs} and a weight "
            f"of the 2:4 pattern are multiplied without its zeros; {target.sparse.evidence}"
        )
    text = f"\n## {target.name}\n\n" + "\n".join(facts) + "\n"
    if target.unfused:
        text += f"\nNothing is written in Q/DQ: {target.unfused}.\n"
    header = ["Activations", "Weights", "Arithmetic", "Evidence"]
    text += "\n" + table(header, [_formats(f) for f in target.formats]) + "\n"
    for reason in dict.fromkeys(target.refused.values()):
        names = ", ".join(name for name, why in target.refused.items() if why == reason)
        text += f"\nNot offered, {names}: {reason}.\n"
    for what, reason in dict.fromkeys((_refused(r), why) for r in target.rows for why in (r.refused or {}).values()):
        text += f"\nNot offered, {what}: {reason}.\n"
    if target.rows:
        timed = any(r.float_cost != Cost() for r in target.rows)
        evidence = list(dict.fromkeys(r.evidence for r in target.rows))
        header = ["Operator", "Forms", *(_COSTS if timed else ()), "Seen as", "Stays float when", "Evidence"]
        rows = [_row(r, timed, evidence.index(r.evidence) + 1) for r in target.rows]
        text += "\n" + table(header, rows) + "\n\nEvidence:\n\n"
        text += "".join(f"{i}. {words}\n" for i, words in enumerate(evidence, 1))
    if target.storages:
        text += _storages(target)
    if target.half.dtype is not None:
        text += _half(target)
    if target.rules:
        text += _rules(target)
    if target.ways:
        text += _ways(target)
    return text + (_landings() if target is CUDA else "")


def _storages(target: Target) -> str:
    """How weights alone are kept as codes."""
    evidence = list(dict.fromkeys(s.evidence for s in target.storages))
    header = ["Operators", "Formats", "Blocks", "Inputs", "Written as", "Seen as", "Stays float when", "Evidence"]
    rows = [
        [
            ", ".join(s.op_types),
            ", ".join(f.name for f in s.formats),
            ", ".join("channel" if b is None else str(b) for b in dict.fromkeys(s.blocks)),
            " or ".join("int8" if form is Form.BLOCKS else "float" for form in s.forms),
            s.lowering.value,
            ", ".join(f"`{k}`" for k in s.kernels),
            "; ".join([c.reason for c in s.conditions] + ["blocks do not divide K"] * s.whole_blocks),
            str(evidence.index(s.evidence) + 1),
        ]
        for s in target.storages
    ]
    return (
        f"\n### Weights alone on {target.name}\n\n[`place-weights`](passes.md#place-weights) takes the first line that "
        "fits; the usual block size and the usual inputs stand first.\n\n"
        + table(header, rows)
        + "\n\nEvidence:\n\n"
        + "".join(f"{i}. {words}\n" for i, words in enumerate(evidence, 1))
    )


def _half(target: Target) -> str:
    """What the pass `precision` may turn to half precision."""
    half = target.half
    every = frozenset.intersection(*half.kernels.values())
    rows = [["any half type", ", ".join(f"`{op}`" for op in sorted(every))]]
    for dtype, kernels in half.kernels.items():
        if kernels - every:
            rows.append([f"{dtype.name.lower()} only", ", ".join(f"`{op}`" for op in sorted(kernels - every))])
    return (
        f"\n### Half precision on {target.name}\n\n"
        f"[`precision`](passes.md#precision) chooses {half.dtype.name.lower() if half.dtype else 'none'} unless asked "
        f"otherwise. These operators may compute in it; all others stay float32. Evidence: {half.evidence}.\n\n"
        + table(["In", "Operators"], rows)
        + "\n"
    )


def _rules(target: Target) -> str:
    """What it asks of single nodes."""
    rows = [[rule.fault, rule.remedy, rule.evidence] for rule in target.rules]
    newest = f", and opsets newer than {target.highest_opset}," if target.highest_opset else ""
    return (
        f"\n### Refused on {target.name}\n\nBeside what rows and formats leave out{newest} this is a fault:\n\n"
        + table(["What is wrong with a node", "Way out", "Evidence"], rows)
        + "\n"
    )


def _ways(target: Target) -> str:
    """The providers that run an artifact, and what they need."""
    text = (
        f"\n### Providers and their options on {target.name}\n\nAn artifact's manifest names the providers that can "
        "run it, with the options that its graph needs; sessions read them there.\n\n"
    )
    text += "".join(f"- `{way.provider}`: {way.evidence}.\n" for way in target.ways)
    rows = [[f"`{o.name}`", o.value, f"`{way.provider}`", o.why] for way in target.ways for o in way.options]
    return text + "\n" + table(["Option", "Value", "Provider", "Without it"], rows) + "\n"


def _refused(row: Row) -> str:
    """The operator, and which form of it its row refuses, as far as others are left."""
    match list(row.refused or {}):
        case [Form.DYNAMIC]:
            return f"{row.op_type} that quantizes as it runs"
        case [Form.INPUTS]:
            return f"{row.op_type} with scales from calibration, {row.variant}"
    return row.op_type


def _formats(formats: Formats) -> list[str]:
    either = "" if len(formats.symmetric) > 1 else ", symmetric" if formats.symmetric[0] else ", asymmetric"
    how = "on codes" if formats.computed else "float between conversions"
    return [f"{formats.activation.name}{either}", formats.weight.name, how, formats.evidence]


def _row(row: Row, timed: bool, evidence: int) -> list[str]:
    int8 = dict.fromkeys(_cost(c) for c in row.forms.values())
    return [
        f"{row.op_type}, {row.variant}" if row.variant else row.op_type,
        "; ".join(form.value for form in row.forms),
        *((_cost(row.float_cost), " or ".join(int8)) if timed else ()),
        ", ".join(f"`{k}`" for k in row.kernels),
        "; ".join(c.reason for c in row.conditions),
        str(evidence),
    ]


def _cost(cost: Cost) -> str:
    terms = [
        (cost.per_mac, "per MAC"),
        (cost.per_output, "per output"),
        (cost.per_input, "per input"),
        (cost.per_weight, "per weight"),
    ]
    return " + ".join(f"{value:g} {unit}" for value, unit in terms if value) or "0"


def _landings() -> str:
    rows = [
        [f"{x.domain}::{x.op_type}" if x.domain else x.op_type, x.case, f"`{x.lands.value}`", x.evidence]
        for x in LANDINGS
    ]
    return (
        "\n### Where quantized operators land on the bare CUDA provider\n\n"
        + table(["Operator", "Types", "Executed by", "Evidence"], rows)
        + "\n"
    )
