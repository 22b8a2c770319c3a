"""Models on the Hugging Face hub, with a card that says what they are, how good, and how to use them."""

from rada.publishing.card import model_card
from rada.publishing.push import Pushed, push_folder

__all__ = ["Pushed", "model_card", "push_folder"]
