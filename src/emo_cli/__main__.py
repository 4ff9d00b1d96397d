"""`python -m emo_cli` is the command `emo`."""

from emo_cli.cli import main

main()
