"""Run the command line as `python -m cutwork`."""

import sys

from cutwork.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
