"""`python -m rada`."""

from rada.cli import main

if __name__ == "__main__":
    main()
