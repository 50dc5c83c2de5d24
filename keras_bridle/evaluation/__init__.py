"""What an encoder has learned, in numbers and pictures."""

from keras_bridle.evaluation.attentive_pooling import AttentivePooling
from keras_bridle.evaluation.classification import (
    ClassificationMetrics,
    classification_metrics,
)
from keras_bridle.evaluation.code_pictures import draw_codes
from keras_bridle.evaluation.code_usage import (
    CodeUsage,
    PublishedCodeUsage,
    code_usage,
    published_code_usage,
)
from keras_bridle.evaluation.confusion_plot import plot_confusion_matrix
from keras_bridle.evaluation.embedding_plot import plot_embedding
from keras_bridle.evaluation.feature_extractor import FeatureExtractor
from keras_bridle.evaluation.features import (
    extract_features,
    log_mel_features,
)
from keras_bridle.evaluation.file_features import (
    FileFeatures,
    extract_file_features,
    load_file_features,
    write_file_features,
)
from keras_bridle.evaluation.knn_probe import knn_probe
from keras_bridle.evaluation.linear_probe import ProbeResult, linear_probe
from keras_bridle.evaluation.nearest_patches import nearest_patches
from keras_bridle.evaluation.patch_features import PatchFeatures, extract_patches
from keras_bridle.evaluation.picture_plots import plot_code_patches, plot_picture_codes
from keras_bridle.evaluation.plots import (
    plot_code_usage,
    plot_history,
    plot_masked_codes,
)
from keras_bridle.evaluation.probe import probe
from keras_bridle.evaluation.report import (
    probe_table,
    usage_rows,
    usage_table,
    write_results,
)
from keras_bridle.evaluation.run_report import RunReport

__all__ = [
    "AttentivePooling",
    "ClassificationMetrics",
    "CodeUsage",
    "FeatureExtractor",
    "FileFeatures",
    "PatchFeatures",
    "ProbeResult",
    "PublishedCodeUsage",
    "RunReport",
    "classification_metrics",
    "code_usage",
    "draw_codes",
    "extract_features",
    "extract_file_features",
    "extract_patches",
    "knn_probe",
    "linear_probe",
    "load_file_features",
    "log_mel_features",
    "nearest_patches",
    "plot_code_patches",
    "plot_code_usage",
    "plot_confusion_matrix",
    "plot_embedding",
    "plot_history",
    "plot_masked_codes",
    "plot_picture_codes",
    "probe",
    "probe_table",
    "published_code_usage",
    "usage_rows",
    "usage_table",
    "write_file_features",
    "write_results",
]
