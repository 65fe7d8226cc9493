"""Measure what a speed costs: time, memory, energy, and how far pictures moved."""

from diffaccel.measure.accuracy import Accuracy, Judge, captions
from diffaccel.measure.edges import edge_agreement, thinned
from diffaccel.measure.energy import joules
from diffaccel.measure.frechet import frechet_distance
from diffaccel.measure.machine import MachineInfo, machine
from diffaccel.measure.memory import MemoryUse, peak_memory, watch_cache
from diffaccel.measure.quality import Quality, compare, ms_ssim, psnr, ssim
from diffaccel.measure.timing import Timing, interleaved

__all__ = [
    "Accuracy",
    "Judge",
    "MachineInfo",
    "MemoryUse",
    "Quality",
    "Timing",
    "captions",
    "compare",
    "edge_agreement",
    "frechet_distance",
    "interleaved",
    "joules",
    "machine",
    "ms_ssim",
    "peak_memory",
    "psnr",
    "ssim",
    "thinned",
    "watch_cache",
]
