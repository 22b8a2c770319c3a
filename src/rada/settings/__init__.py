"""The settings in which RAda learns: frozen encoders (EFT) and those that follow it."""

from rada.settings.eft import HeadTrainer, TrainedHead, TrainingInterrupted, train_head
from rada.settings.strength import StrengthChoice

__all__ = ["HeadTrainer", "StrengthChoice", "TrainedHead", "TrainingInterrupted", "train_head"]
