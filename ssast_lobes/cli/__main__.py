"""``python -m ssast_lobes.cli``: run the command ``ssast-lobes``."""

import sys

from ssast_lobes.cli import main

sys.exit(main())
