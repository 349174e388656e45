"""Fuzzing: what is fed to which parser, and what may come of it. `make fuzz` runs all targets."""
