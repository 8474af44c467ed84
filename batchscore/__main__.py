"""`python -m batchscore`."""

from batchscore.cli import main

if __name__ == "__main__":
    main()
