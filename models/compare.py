"""The earlier name of `python -m models.check`."""

import sys

from models.check import main

if __name__ == "__main__":
    sys.exit(main())
