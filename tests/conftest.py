"""Property tests are the same on every machine: seeded, and never judged by the clock."""

from hypothesis import settings

settings.register_profile("qcompile", deadline=None, derandomize=True)
settings.load_profile("qcompile")
