"""Full fine-tuning (FFT): encoders and head learn together, judged in and out of distribution."""

from rada.settings.fft.config import FFTConfig
from rada.settings.fft.loop import FineTuningStopped, OutOfMemoryError, TrainingDivergedError
from rada.settings.fft.methods import FFTMethod, get_fft_method, list_fft_methods
from rada.settings.fft.tuner import FineTuner
from rada.settings.fft.wise import ALPHAS, interpolate

__all__ = [
    "ALPHAS",
    "FFTConfig",
    "FFTMethod",
    "FineTuner",
    "FineTuningStopped",
    "OutOfMemoryError",
    "TrainingDivergedError",
    "get_fft_method",
    "interpolate",
    "list_fft_methods",
]
