"""``python -m benchmarks.live``: see benchmarks.live.headline."""

import sys

from benchmarks.live.headline import main

if __name__ == "__main__":
    sys.exit(main())
