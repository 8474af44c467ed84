"""`python -m batchscore`."""

from batchscore.cli import process

if __name__ == "__main__":
    process()
