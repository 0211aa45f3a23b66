"""Hypothesis without per-example time limits: a test that fails because the machine was busy tells nothing."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
