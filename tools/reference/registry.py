"""The passes of the package itself; tests register passes of their own."""

from __future__ import annotations

from qcompile.compiler.passes import Pass, import_passes, registered_passes


def package_passes() -> dict[str, type[Pass]]:
    """Every pass that comes with qcompile, by name."""
    import_passes("qcompile.passes")
    return {name: cls for name, cls in registered_passes().items() if cls.__module__.startswith("qcompile.")}
