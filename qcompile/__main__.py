"""`python -m qcompile`: the program where its folder of scripts is not on the path."""

from qcompile.frontends.cli.main import main

main()
