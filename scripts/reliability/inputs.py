"""Reliability of what people bring: checkpoints, LoRAs, prompts, pictures and tables, in files that the checks make.

Each module beside this one whose name begins with `inputs_` adds its part.
"""

from importlib import import_module
from pathlib import Path

PARTS = sorted(file.stem for file in Path(__file__).parent.glob("inputs_*.py"))
CHECKS = {name: check for part in PARTS for name, check in import_module(f"reliability.{part}").PART.items()}
