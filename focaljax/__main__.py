"""`python -m focaljax VERB` is the same as `focaljax VERB`."""

from focaljax.cli.main import program

program()
