"""Copy trained models from `runs/` into the package, in half precision: what `diffaccel.models` ships.

The weights are stored as float16 and declared as float32 in the configurations, so that they load as float32 unless
the caller asks for another dtype.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

BUNDLED = {
    "emoji-sd": Path("sd/model"),
    "emoji-sd-small": Path("sd-small/model"),
    "emoji-dit": Path("dit/model"),
    "emoji-clip": Path("clip/model"),
    "emoji-lcm-lora": Path("lcm/model"),
    "emoji-control": Path("control/model"),
    "emoji-dit-control": Path("dit-control/model"),
    "emoji-vae-small": Path("vae-small/model"),
    "emoji-video": Path("video/model"),
}
KEPT = ("README.md", "figures.json")  # written by hand and by evaluate_models.py


def halve(file: Path) -> None:
    """Rewrite a safetensors file with its floating-point tensors as float16."""
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(file).items()}
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata=metadata)


def edit_json(file: Path, edit: Callable[[dict], None]) -> None:
    """Load, change in place, write again."""
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config, indent=2) + "\n")


def clean_config(config: dict) -> None:
    """Declare float32; drop local paths, and what AutoencoderTiny derives itself and warns about."""
    config.pop("_name_or_path", None)
    config.pop("transformers_version", None)
    config.pop("is_local", None)
    config.pop("local_files_only", None)
    if "dtype" in config:
        config["dtype"] = "float32"
    if config.get("_class_name") == "AutoencoderTiny":
        config.pop("block_out_channels", None)


def bundle(source: Path, target: Path) -> int:
    """Replace the model in `target` by the one in `source`; bytes of its files."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        if old.name not in KEPT:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(source, target, dirs_exist_ok=True)
    for file in target.rglob("*.safetensors"):
        halve(file)
    for file in target.rglob("*.json"):
        if file.name in ("config.json", "model_index.json", "tokenizer_config.json"):
            edit_json(file, clean_config)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def main() -> None:
    """Bundle every model that has been trained, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BUNDLED)}; all that exist by default")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=Path("diffaccel/models"))
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    for name in args.names or [name for name, folder in BUNDLED.items() if (args.runs / folder).is_dir()]:
        print(f"{name}: {bundle(args.runs / BUNDLED[name], args.output / name) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
