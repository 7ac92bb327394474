"""`python -m hybridize` is the command `hybridize`."""

from hybridize.cli import main

if __name__ == "__main__":
    main()
