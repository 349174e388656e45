"""`python -m tests.fuzz [--seconds N] [TARGET...]`: atheris on the targets, one after another.

Each runs in a process of its own, led by the coverage of `service`. Its corpus is kept in
`.fuzz/<target>`; an input that fails is kept there as `crash-...`, is printed, and belongs into
tests/test_fuzz_pure.py. Where atheris is not installed this says so, and fails.
"""

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(".fuzz")
INPUT_MAX_BYTES = 4096
INPUT_MAX_S = 5


def main() -> int:
    """Run the chosen targets; return 1 if one of them found something."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    try:
        import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    if arguments.one:
        return fuzz(atheris, arguments.one, arguments.seconds)
    from tests.fuzz.targets import TARGETS

    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(arguments.seconds), "--one"]
    failed = [
        name
        for name in arguments.targets or TARGETS
        if subprocess.run([*command, name], check=False).returncode != 0
    ]
    print(f"{len(failed)} targets found something: {', '.join(failed)}" if failed else "nothing")
    return 1 if failed else 0


def fuzz(atheris: object, name: str, seconds: int) -> int:
    """Fuzz one target in this process, which ends with it."""
    with atheris.instrument_imports(include=["service"]):  # type: ignore[attr-defined]
        from tests.fuzz.targets import SEEDS, TARGETS
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        *(f"-max_total_time={seconds}", f"-max_len={INPUT_MAX_BYTES}", f"-timeout={INPUT_MAX_S}"),
        *(f"-artifact_prefix={corpus}/", "-print_final_stats=1", "-verbosity=0"),
    ]
    print(f"{name}: {seconds} s", flush=True)
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[name])  # type: ignore[attr-defined]
    atheris.Fuzz()  # type: ignore[attr-defined]
    return 0


if __name__ == "__main__":
    sys.exit(main())
