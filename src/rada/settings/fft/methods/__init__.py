"""Methods of full fine-tuning, one file each."""

from rada.settings.fft.methods.base import FFTMethod, FirstStage
from rada.settings.fft.methods.registry import (
    get_fft_method,
    list_fft_methods,
    register_fft_method,
)

__all__ = [
    "FFTMethod",
    "FirstStage",
    "get_fft_method",
    "list_fft_methods",
    "register_fft_method",
]
