"""Try to break the software, in full: real kills, a real full disk, real launchers. Prints one line a check.

python scripts/check_reliability.py batch [--only "kill -9"] [--model FOLDER_OR_NAME] [--kills 50]

What the checks use comes with the extra `test`. Each subject is a module in scripts/reliability with a dictionary
CHECKS; rows are those of the reliability table there.
"""

import argparse
import re
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "stream")]  # for the files that both use
SUBJECTS = sorted(f.stem for f in (HERE / "reliability").glob("*.py") if re.search(r"^CHECKS\b", f.read_text(), re.M))


def main() -> None:
    """Run the checks of a subject one after another; exit with 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=SUBJECTS)
    parser.add_argument("--model", default=str(HERE.parent / "tests" / "data" / "tiny-sd"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the length of the live checks")
    parser.add_argument("--only", action="append", help="name of a check; may be given several times")
    options = parser.parse_args()
    checks = import_module(f"reliability.{options.what}").CHECKS
    if unknown := set(options.only or ()) - set(checks):
        parser.error(f"no check {', '.join(unknown)}; there are {', '.join(checks)}")
    failed = False
    with tempfile.TemporaryDirectory() as place:
        for name, check in checks.items():
            if options.only and name not in options.only:
                continue
            start = time.monotonic()
            try:
                outcome = f"ok    {name}: {check(options.model, Path(place), options)}"
            except Exception as error:
                failed = True
                outcome = f"FAIL  {name}: {str(error) or traceback.format_exc(limit=-1)}"
            print(f"{outcome} ({time.monotonic() - start:.0f} s)", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
