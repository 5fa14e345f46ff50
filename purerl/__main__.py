"""`python -m purerl`."""

from purerl.cli import main

main()
