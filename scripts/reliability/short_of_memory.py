"""Renders eight large pictures in one batch in a process whose memory is limited to hardly more than it has.

python short_of_memory.py MODEL FOLDER; prints the sizes of the batches that were tried, as JSON.
"""

import json
import re
import resource
import sys
from pathlib import Path

from diffaccel.batch.jobs import Job
from diffaccel.batch.render import Renderer
from diffaccel.batch.run import BatchRun
from diffaccel.batch.store import OutputFolder
from diffaccel.models import load

SIZE = 512


def memory(field: str) -> int:
    """A figure of this process's address space in bytes: VmSize now, VmPeak at its most."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def main() -> None:
    """Render one at a time first; then in a batch, with half as much memory again as that took at its most."""
    model, place = sys.argv[1], Path(sys.argv[2])
    fixed = {"model": model, "dtype": "float32", "steps": 1, "guidance_scale": 1.0, "width": SIZE, "height": SIZE}
    jobs = [Job(id=f"j{number}", prompt=f"p{number}", seed=number, **fixed) for number in range(8)]
    place.mkdir()
    sizes: list[int] = []
    with Renderer(load(model, device="cpu")) as renderer:
        renderer._pipe.unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
        before = memory("VmSize")
        with OutputFolder(place / "alone") as folder:
            alone = BatchRun(renderer, folder, batch_size=1)(jobs).done
        sizes.clear()
        limit = memory("VmPeak") + (memory("VmPeak") - before) // 2
        resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
        with OutputFolder(place / "short") as folder:
            done = BatchRun(renderer, folder, batch_size=8)(jobs).done
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    print(json.dumps({"done": done, "alone": alone, "sizes": sizes}))


if __name__ == "__main__":
    main()
