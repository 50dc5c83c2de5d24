"""Fine-tuning of pretrained encoders."""

from keras_bridle.fine_tuning.examples import ArrayExamples, FileExamples
from keras_bridle.fine_tuning.fine_tune import FineTuned, fine_tune
from keras_bridle.fine_tuning.fine_tuner import FineTuner
from keras_bridle.fine_tuning.labeled_batches import LabeledBatches
from keras_bridle.fine_tuning.layer_decay import LayerDecayAdamW, layer_decay_optimizer
from keras_bridle.fine_tuning.multi_view import array_views, file_views
from keras_bridle.fine_tuning.predictions import Predictions, predict_examples
from keras_bridle.fine_tuning.report import report_predictions
from keras_bridle.fine_tuning.sampling import (
    balanced_weights,
    draw_few,
    epoch_order,
    split_examples,
)
from keras_bridle.fine_tuning.validation_scores import ValidationScores

__all__ = [
    "ArrayExamples",
    "FileExamples",
    "FineTuned",
    "FineTuner",
    "LabeledBatches",
    "LayerDecayAdamW",
    "Predictions",
    "ValidationScores",
    "array_views",
    "balanced_weights",
    "draw_few",
    "epoch_order",
    "file_views",
    "fine_tune",
    "layer_decay_optimizer",
    "predict_examples",
    "report_predictions",
    "split_examples",
]
