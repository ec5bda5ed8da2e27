"""A difference as one HTML page: the two models side by side, row by row."""

from __future__ import annotations

import re

from qcompile.compiler.diff import Diff, NodeRef
from qcompile.compiler.reporting.charts.placement import CLASSES
from qcompile.compiler.reporting.diff_summary import patterns, runs, tensor_groups
from qcompile.compiler.reporting.page import render_page


def render_diff(diff: Diff) -> str:
    """`diff` as HTML text that needs nothing but itself."""
    return render_page(
        "diff.html.jinja",
        diff=diff,
        names=[re.split(r"[/\\]", side.path)[-1] for side in (diff.before, diff.after)],
        patterns=patterns(diff),
        tensor_groups=tensor_groups(diff.tensors),
        tensors=sorted(diff.tensors, key=lambda t: -max(t.bytes_before, t.bytes_after)),
        runs=runs(diff),
        form_class=_form_class,
        forms=CLASSES,
    )


def _form_class(node: NodeRef) -> str:
    return next((c for form, c in CLASSES.items() if form == node.form), "weights")
