"""What an encoder has learned, in numbers and pictures."""

from keras_bridle.evaluation.code_pictures import draw_codes
from keras_bridle.evaluation.code_usage import (
    CodeUsage,
    PublishedCodeUsage,
    code_usage,
    published_code_usage,
)
from keras_bridle.evaluation.features import extract_features, log_mel_features
from keras_bridle.evaluation.knn_probe import knn_probe
from keras_bridle.evaluation.linear_probe import ProbeResult, linear_probe
from keras_bridle.evaluation.nearest_patches import nearest_patches
from keras_bridle.evaluation.picture_plots import plot_code_patches, plot_picture_codes
from keras_bridle.evaluation.plots import (
    plot_code_usage,
    plot_history,
    plot_masked_codes,
)
from keras_bridle.evaluation.report import (
    probe_table,
    usage_rows,
    usage_table,
    write_results,
)
from keras_bridle.evaluation.run_report import RunReport

__all__ = [
    "CodeUsage",
    "ProbeResult",
    "PublishedCodeUsage",
    "RunReport",
    "code_usage",
    "draw_codes",
    "extract_features",
    "knn_probe",
    "linear_probe",
    "log_mel_features",
    "nearest_patches",
    "plot_code_patches",
    "plot_code_usage",
    "plot_history",
    "plot_masked_codes",
    "plot_picture_codes",
    "probe_table",
    "published_code_usage",
    "usage_rows",
    "usage_table",
    "write_results",
]
