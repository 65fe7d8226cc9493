"""The real-time demo as a script: `python scripts/webcam.py` is `diffaccel live`, with the same options.

It opens a page that paints what you draw or show the camera. With a window instead of a browser (extra `camera`):

    python scripts/webcam.py --source camera --sink window --prompt "a tiger"
"""

from diffaccel.cli import main

if __name__ == "__main__":
    import sys

    main(["live", *sys.argv[1:]], prog_name="webcam.py")
