"""Find the cheapest schedule for a quality, or the best for a cost: calibrate, search, verify with real runs.

from diffaccel.tune import Budget, tune
recipe = tune(pipe, prompts, Budget(min_psnr=30), num_inference_steps=20).recipe
recipe.save("p.json")
"""

from diffaccel.tune.budget import LIMITS, Budget, BudgetError
from diffaccel.tune.picture import to_svg, to_text
from diffaccel.tune.refine import Refinement, refine
from diffaccel.tune.router_training import train_routers
from diffaccel.tune.tuner import Tuned, Tuner, tune

__all__ = [
    "LIMITS",
    "Budget",
    "BudgetError",
    "Refinement",
    "Tuned",
    "Tuner",
    "refine",
    "to_svg",
    "to_text",
    "train_routers",
    "tune",
]
