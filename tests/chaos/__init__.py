"""Chaos: the whole of Causeway as real processes, faults by a seeded schedule, and a checker.

`python -m tests.chaos` (`make chaos`) runs it. `world` are the processes, `bridge`, `subscribers`,
`holders` and `callbacks` act on them and keep in `history` what they saw, `faults` break them as
`schedule` says, `checker` and `recovery` judge the history, `report` tells.
"""
