"""The door for a checkout: ``python cli.py --gpus 3x20GB --model 7B``."""

from planner.cli.app import main

if __name__ == "__main__":
    main()
