"""The models that ship inside the package, and one careful loader for these, a local folder or a Hub repository.

from diffaccel import models
pipe = models.load("emoji-sd")
print(models.figures("emoji-sd"))
"""

from .catalogue import BUNDLED, Bundled, Defaults, defaults, figures, names, path
from .loader import load, load_lora
from .source import ModelError, ModelSource, resolve

__all__ = [
    "BUNDLED",
    "Bundled",
    "Defaults",
    "ModelError",
    "ModelSource",
    "defaults",
    "figures",
    "load",
    "load_lora",
    "names",
    "path",
    "resolve",
]
