"""`python -m ionto_rt` is `ionto-rt`."""

from ionto_rt.cli import main

if __name__ == "__main__":
    main()
