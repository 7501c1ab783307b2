"""``python -m planner`` is ``plan``."""

from planner.cli.app import main

main()
