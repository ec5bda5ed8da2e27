"""The counts that every form of the report shows: units by operator and form, float nodes by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from qcompile.compiler.report import FloatRecord, Report


@dataclass(frozen=True)
class UnitGroup:
    """Units of one operator and one form.

    Attributes:
        proved, refuted: how many the runtime was seen to run, or seen not to run, in low precision;
            the rest was not examined.
        kernels: operators of the runtime that run them, the most frequent first.
    """

    op_type: str
    form: str
    units: int
    proved: int
    refuted: int
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class FloatGroup:
    """Nodes that stayed float for one reason."""

    reason: str
    nodes: tuple[FloatRecord, ...]

    @property
    def operators(self) -> str:
        """'Add 12, Softmax 6': operator types with their counts, the most frequent first."""
        return ", ".join(f"{op} {n}" for op, n in Counter(r.op_type for r in self.nodes).most_common())


def unit_groups(report: Report) -> list[UnitGroup]:
    """Units by operator and form, the largest group first."""
    groups = Counter((u.op_type, u.form) for u in report.units)
    found = []
    for (op_type, form), units in groups.most_common():
        members = [u for u in report.units if (u.op_type, u.form) == (op_type, form)]
        kernels = Counter(u.kernel for u in members if u.kernel)
        found.append(
            UnitGroup(
                op_type,
                form,
                units,
                proved=sum(u.proved is True for u in members),
                refuted=sum(u.proved is False for u in members),
                kernels=tuple(k for k, _ in kernels.most_common()),
            )
        )
    return found


def float_groups(report: Report) -> list[FloatGroup]:
    """Nodes that stayed float by reason, the most frequent reason first."""
    groups = Counter(r.reason for r in report.kept_float)
    return [
        FloatGroup(reason, tuple(r for r in report.kept_float if r.reason == reason))
        for reason, _ in groups.most_common()
    ]
