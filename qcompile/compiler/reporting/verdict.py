"""The verdict of a compilation: the one sentence that every form of the report says first."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qcompile.compiler.report import Report
from qcompile.compiler.reporting.wording import cosine, count, data_size, decibel, plain, significant, times


class Level(StrEnum):
    """How loud the verdict is."""

    GOOD = "good"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Verdict:
    """Headline and reasons, the most serious first.

    Attributes:
        alarms: what is wrong; empty when the level is GOOD.
        notices: what else the user was told, without what the alarms say already.
    """

    level: Level
    headline: str
    alarms: tuple[str, ...]
    notices: tuple[str, ...]


def verdict(report: Report) -> Verdict:
    """Judge `report`: a failed proof fails it; a slower model, an edit that leaves little of an output, made-up data
    or no low precision at all warn."""
    slower = _slower(report)
    failed = [p for p in report.failed if not (p.name == "speed" and slower)]
    warnings = [*slower, *_overdone(report), *_nothing_done(report), *_made_up(report)]
    level = Level.FAILED if report.failed else Level.WARNING if warnings else Level.GOOD
    said = {f"{p.name}: {p.detail}" for p in report.failed}
    return Verdict(
        level,
        _headline(report, level),
        (*(f"Proof failed: {plain(p.name)}. {plain(p.detail)}" for p in failed), *warnings),
        (*_edited(report), *(plain(n) for n in report.notices if n not in said)),
    )


def _headline(report: Report, level: Level) -> str:
    parts = []
    if report.bytes_before and report.bytes_after:
        parts.append(times(report.bytes_before / report.bytes_after, "smaller", "larger"))
    if report.speed:
        parts.append(times(report.speed.ratio, "faster", "SLOWER"))
    if report.metric_float is not None and report.metric_compiled is not None:
        change = report.metric_compiled - report.metric_float
        parts.append(f"metric {'+' if change >= 0 else '-'}{significant(abs(change), 2)}")
    if level is Level.FAILED:
        parts.insert(0, count(len(report.failed), "proof").upper() + " FAILED")
    elif report.proofs:
        tried = [p for p in report.proofs if p.passed is not None]
        parts.append(
            f"{len(tried)} of {count(len(report.proofs), 'proof')} tried, all passed" if tried else "no proof tried"
        )
        if len(tried) == len(report.proofs):
            parts[-1] = "every proof passed"
    return ", ".join(parts) or "Compiled"


def _slower(report: Report) -> list[str]:
    speed = report.speed
    if speed is None or speed.ratio >= 1:
        return []
    text = (
        f"The compiled model is {times(speed.ratio, 'faster', 'slower')} than the float model on {speed.provider} "
        f"({significant(speed.compiled_ms)} ms against {significant(speed.float_ms)} ms)."
    )
    if 1 - speed.ratio <= speed.spread / 2:
        text += " The difference is within the spread of the measurement."
    if speed.slowest:
        costly = ", ".join(f"{plain(name)} ({significant(ms)} ms)" for name, ms in speed.slowest[:3])
        text += f" Nodes that cost it: {costly}."
    return [text]


def _nothing_done(report: Report) -> list[str]:
    if report.units or not report.kept_float:
        return []
    text = f"Nothing runs in low precision: all {count(len(report.kept_float), 'candidate')} stayed float"
    if report.bytes_before:
        text += f" and the file went from {data_size(report.bytes_before)} to {data_size(report.bytes_after)}"
    return [text + "."]


_HALF = 3.0
"""dB: half of an output's energy is error."""


def _overdone(report: Report) -> list[str]:
    """A metric says better what an edit costs."""
    edit = report.edit
    if edit is None or edit.metric is not None:
        return []
    lost = [output for output in edit.outputs if output.sqnr < _HALF]
    if not lost:
        return []
    worst = min(lost, key=lambda output: output.sqnr)
    return [
        f"{plain(', '.join(edit.passes))} left little of output '{plain(worst.name)}': {decibel(worst.sqnr)} and "
        f"cosine {cosine(worst.cosine)} to the given model's. Take less away, or judge the result with --metric."
    ]


def _edited(report: Report) -> list[str]:
    edit = report.edit
    if edit is None:
        return []
    text = f"Passes changed the float model on purpose: {plain(', '.join(edit.passes))}"
    if edit.outputs:
        worst = min(edit.outputs, key=lambda output: output.sqnr)
        text += f"; output '{plain(worst.name)}' is {decibel(worst.sqnr)} from the given model's"
    if edit.metric is not None and report.metric_float is not None:
        text += f"; the metric went from {significant(report.metric_float, 4)} to {significant(edit.metric, 4)}"
    return [text + ". The noise figures are against the edited model."]


def _made_up(report: Report) -> list[str]:
    if not report.synthetic_data:
        return []
    return ["Calibrated on made-up samples: ranges and noise figures say little about real data. Give real samples."]
