"""What an encoder has learned, in numbers and plots."""

from keras_bridle.evaluation.features import (
    FeatureExtractor,
    FileFeatures,
    load_file_features,
    write_file_features,
)
from keras_bridle.evaluation.metrics import (
    ClassificationMetrics,
    CodeUsage,
    classification_metrics,
    code_usage,
)
from keras_bridle.evaluation.plots import (
    draw_codes,
    nearest_patches,
    plot_code_patches,
    plot_code_usage,
    plot_codes,
    plot_confusion_matrix,
    plot_embedding,
    plot_history,
)
from keras_bridle.evaluation.probes import (
    AttentivePooling,
    ProbeResult,
    knn_probe,
    linear_probe,
    probe,
)
from keras_bridle.evaluation.report import (
    RunReport,
    probe_table,
    usage_rows,
    usage_table,
    write_results,
)

__all__ = [
    "AttentivePooling",
    "ClassificationMetrics",
    "CodeUsage",
    "FeatureExtractor",
    "FileFeatures",
    "ProbeResult",
    "RunReport",
    "classification_metrics",
    "code_usage",
    "draw_codes",
    "knn_probe",
    "linear_probe",
    "load_file_features",
    "nearest_patches",
    "plot_code_patches",
    "plot_code_usage",
    "plot_codes",
    "plot_confusion_matrix",
    "plot_embedding",
    "plot_history",
    "probe",
    "probe_table",
    "usage_rows",
    "usage_table",
    "write_file_features",
    "write_results",
]
