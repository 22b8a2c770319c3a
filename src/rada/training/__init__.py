"""The settings in which RAda learns: frozen encoders (EFT) and those that follow it."""

from rada.training.eft import HeadTrainer, TrainedHead, TrainingInterrupted, train_head
from rada.training.strength import StrengthChoice

__all__ = ["HeadTrainer", "StrengthChoice", "TrainedHead", "TrainingInterrupted", "train_head"]
