from __future__ import annotations

import io

import pytest
from made_up import encoder_report
from rich.console import Console

from qcompile.compiler.report import Edit, OutputNoise, Proof, Report
from qcompile.compiler.reporting.terminal import show
from qcompile.compiler.reporting.verdict import Level, verdict


def shown(report: Report, width: int = 110) -> list[str]:
    out = io.StringIO()
    show(report, Console(file=out, width=width))
    return out.getvalue().splitlines()


def test_a_good_compilation_fits_a_screen() -> None:
    lines = shown(encoder_report())
    assert len(lines) <= 50
    assert "3.83x smaller, 2.04x faster" in lines[1]
    text = "\n".join(lines)
    for part in (
        "25.3 dB",
        "MatMulIntegerToFloat",
        "an input carries an attention mask",
        "not tried",
        "calibrate 2.90 s",
    ):
        assert part in text
    assert "all-MiniLM-L6-v2.int8-static.html" in text


def test_an_edit_is_told_at_the_top_and_beside_the_noise() -> None:
    report = encoder_report()
    report.edit = Edit(passes=["prune"], outputs=[OutputNoise(name="logits", sqnr=12.3, cosine=0.97, max_error=2)])
    report.metric_float, report.metric_compiled, report.edit.metric = 0.91, 0.88, 0.89
    text = " ".join(" ".join(shown(report)).replace("│", " ").split())
    said = "Passes changed the float model on purpose: prune; output 'logits' is 12.3 dB from the given model's;"
    assert f"{said} the metric went from 0.9100 to 0.8900. The noise figures are against the edited model." in text
    assert "Outputs against edited float" in text
    assert "What the edit changed, in float" in text
    assert "-0.0300, of which -0.0200 is the edit's" in text


@pytest.mark.parametrize(("sqnr", "metric", "warned"), [(3.1, None, False), (-4.0, None, True), (-4.0, 0.8, False)])
def test_an_edit_that_leaves_little_warns_unless_a_metric_judges(
    sqnr: float, metric: float | None, warned: bool
) -> None:
    report = encoder_report()
    lost = OutputNoise(name="logits", sqnr=sqnr, cosine=0.39761, max_error=6)
    report.edit = Edit(passes=["wanda"], outputs=[lost], metric=metric)
    judged = verdict(report)
    said = "wanda left little of output 'logits': -4.0 dB and cosine 0.3976 to the given model's."
    assert any(alarm.startswith(said) for alarm in judged.alarms) == warned
    assert (judged.level is Level.WARNING) == warned


def test_a_failed_proof_and_a_slower_model_come_first() -> None:
    report = encoder_report(refuted=True, slower=True)
    judged = verdict(report)
    assert judged.level is Level.FAILED
    assert judged.headline.startswith("1 PROOF FAILED")
    assert "SLOWER" in judged.headline
    lines = shown(report)
    assert "1 PROOF FAILED" in lines[1]
    assert any("Proof failed: dispatch" in line for line in lines[:8])
    assert any("Nodes that cost it" in line for line in lines[:8])


def test_a_failed_speed_proof_is_told_once() -> None:
    report = encoder_report(slower=True)
    proof = Proof(name="speed", passed=False, detail="SLOWER, 0.49x of float")
    report.proofs.append(proof)
    report.notices.append(f"{proof.name}: {proof.detail}")
    judged = verdict(report)
    assert judged.level is Level.FAILED
    assert len(judged.alarms) == 1
    assert "2.04x slower" in judged.alarms[0]
    assert judged.notices == tuple(report.notices[:1])


def test_slower_within_the_spread_says_so() -> None:
    report = encoder_report()
    assert report.speed
    report.speed.float_ms, report.speed.compiled_ms, report.speed.spread = 9.9, 10.0, 0.1
    judged = verdict(report)
    assert judged.level is Level.WARNING
    assert "within the spread" in judged.alarms[0]


def test_made_up_samples_and_nothing_quantized_warn() -> None:
    report = encoder_report()
    report.synthetic_data, report.units = True, []
    judged = verdict(report)
    assert judged.level is Level.WARNING
    assert any("Nothing runs in low precision" in a for a in judged.alarms)
    assert any("made-up samples" in a for a in judged.alarms)


def test_an_empty_report_is_shown() -> None:
    empty = Report(model="m.onnx", artifact="o.onnx", recipe="r", target="cpu", versions={}, data="none")
    assert any("o.onnx" in line for line in shown(empty))


def test_a_verified_model_has_no_recipe_and_perhaps_no_float_model() -> None:
    report = encoder_report()
    report.recipe, report.samples, report.data, report.units = "", 0, "none", []
    report.bytes_before = 0
    text = "\n".join(shown(report))
    assert "│ for cpu · no samples" in text
    assert "0 bytes" not in text


def test_names_with_markup_and_escapes_are_shown_as_they_are() -> None:
    report = encoder_report()
    report.kept_float[0].reason = "[bold]\x1b[2Jboo"
    text = "\n".join(shown(report, 140))
    assert r"[bold]\x1b[2Jboo" in text
    assert "\x1b" not in text
