"""`python -m stillhouse`, which is also how torchrun starts the ranks of a stage."""

import sys

from stillhouse.cli import main

if __name__ == "__main__":
    sys.exit(main())
