"""The workflows behind the recipes."""

from keras_bridle.workflows.fine_tuning import FineTuning
from keras_bridle.workflows.pretraining import Pretraining, PretrainingOptions
from keras_bridle.workflows.probing import Probing

__all__ = ["FineTuning", "Pretraining", "PretrainingOptions", "Probing"]
