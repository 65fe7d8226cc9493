"""`python -m diffaccel`."""

from diffaccel.cli import main

if __name__ == "__main__":
    main(prog_name="diffaccel")
