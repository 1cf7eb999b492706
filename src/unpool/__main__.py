"""`python -m unpool` is the command line."""

from unpool.cli import main

if __name__ == "__main__":
    main(prog_name="unpool")
