"""Trainers for each phase, and the plan that runs them in turn."""

from keras_bridle.pretraining.array_batches import ArrayBatches
from keras_bridle.pretraining.atomic_files import SaveError
from keras_bridle.pretraining.code_accuracy import CodeAccuracy
from keras_bridle.pretraining.code_usage import CodeUsage
from keras_bridle.pretraining.code_usage_logger import CodeUsageLogger
from keras_bridle.pretraining.encoder_pretrainer import EncoderPretrainer
from keras_bridle.pretraining.interleaved import InterleavedPretraining
from keras_bridle.pretraining.joint_pretrainer import JointPretrainer
from keras_bridle.pretraining.nonfinite_steps import NonFiniteLoss
from keras_bridle.pretraining.optimization import adamw, warmup_cosine
from keras_bridle.pretraining.phase_checkpoint import PhaseCheckpoint
from keras_bridle.pretraining.phases import Phase
from keras_bridle.pretraining.preemption import Preempted
from keras_bridle.pretraining.rich_progress import RichProgress
from keras_bridle.pretraining.run_directory import RunDirectory
from keras_bridle.pretraining.saved_run import load_run
from keras_bridle.pretraining.tokenizer_pretrainer import TokenizerPretrainer

__all__ = [
    "ArrayBatches",
    "CodeAccuracy",
    "CodeUsage",
    "CodeUsageLogger",
    "EncoderPretrainer",
    "InterleavedPretraining",
    "JointPretrainer",
    "NonFiniteLoss",
    "Phase",
    "PhaseCheckpoint",
    "Preempted",
    "RichProgress",
    "RunDirectory",
    "SaveError",
    "TokenizerPretrainer",
    "adamw",
    "load_run",
    "warmup_cosine",
]
