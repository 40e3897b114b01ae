"""``python -m ssast_lobes.cli``: the command without its script."""

import sys

from ssast_lobes.cli import main

sys.exit(main())
