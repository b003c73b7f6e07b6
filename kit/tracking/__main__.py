"""The process of `kit.tracking.ahead`: `python -m kit.tracking PROFILE TARGET SERVER`."""

import sys

from kit.tracking.ahead import main

if __name__ == "__main__":
    main(*sys.argv[1:])
