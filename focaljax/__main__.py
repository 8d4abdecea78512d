"""`python -m focaljax VERB` is the same as `focaljax VERB`."""

import sys

from focaljax.cli.main import main

sys.exit(main())
