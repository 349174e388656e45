"""The figures that Causeway promises, measured: `python -m tests.bench [NAME ...] [--quick]`.

Each module with a `measure` function is one bench; its docstring is the explanation that stands
beside its figures in `docs/benchmarks.md`. What counts are ratios of two things measured in one
run, one after the other and again (A, B, A, B, ...), and the median of each round's ratio: machines
differ and are noisy. Linux only (epoll, /proc).
"""
