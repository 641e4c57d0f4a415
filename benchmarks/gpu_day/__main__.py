"""``python -m benchmarks.gpu_day``: see benchmarks.gpu_day.command."""

import sys

from benchmarks.gpu_day.install import install


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    install()
    # Not before: it needs what has just been installed.
    from benchmarks.gpu_day.command import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
