"""Full fine-tuning (FFT): encoders and head learn together, judged in and out of distribution."""

from rada.methods.finetune import FFTMethod, get_fft_method, list_fft_methods
from rada.methods.finetune.config import FFTConfig
from rada.methods.finetune.tuner import FineTuner
from rada.training.encoder_loop import FineTuningStopped, OutOfMemoryError, TrainingDivergedError
from rada.training.wise_ft import ALPHAS, interpolate

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
