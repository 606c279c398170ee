"""`python -m profilehouse.cli`."""

from profilehouse.cli import main

main()
