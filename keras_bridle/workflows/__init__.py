"""What the recipes do with their options."""

from keras_bridle.workflows.fine_tuning import FineTuning
from keras_bridle.workflows.pretraining import Pretraining, PretrainingOptions

__all__ = ["FineTuning", "Pretraining", "PretrainingOptions"]
