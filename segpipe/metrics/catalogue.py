"""The table of metrics, and their common convention for empty masks."""

from typing import NamedTuple

CONVENTION = (
    "Per case (a whole volume or image), foreground only, then averaged over cases; never over pooled pixels, never "
    "with the background. Reference and prediction both empty: left out of the mean, but counted. Only one of them "
    "empty (missed, or false alarm): 0 for overlap, surface Dice, clDice and lesions, the image's diagonal for surface "
    "distances; specificity and volume errors follow their formulas. Pixel-wise metrics need a reference. With several "
    "classes a case's value is the mean over the classes that have one."
)


class Metric(NamedTuple):
    """How a metric is shown: its name, its unit (mm, ml or none), whether more is better, the value of a perfect case,
    and what the convention says where only one mask is empty.
    """

    title: str
    unit: str
    higher: bool
    best: float
    one_empty: str


_NEEDS_REFERENCE = "missed: formula; false alarm: left out"
METRICS: dict[str, Metric] = {
    "dice": Metric("Dice", "", True, 1, "0"),
    "iou": Metric("IoU", "", True, 1, "0"),
    "precision": Metric("precision", "", True, 1, "0"),
    "recall": Metric("recall", "", True, 1, "0"),
    "specificity": Metric("specificity", "", True, 1, "formula"),
    "hd95": Metric("HD95", "mm", False, 0, "image diagonal"),
    "assd": Metric("ASSD", "mm", False, 0, "image diagonal"),
    "nsd": Metric("NSD", "", True, 1, "0"),
    "cldice": Metric("clDice", "", True, 1, "0"),
    "volume_error_ml": Metric("volume error", "ml", False, 0, "formula (both empty: 0)"),
    "volume_error_relative": Metric("relative volume error", "", False, 0, "missed: 1; false alarm: left out"),
    "lesion_recall": Metric("lesion recall", "", True, 1, "0"),
    "lesion_precision": Metric("lesion precision", "", True, 1, "0"),
    "lesion_f1": Metric("lesion F1", "", True, 1, "0"),
    "accuracy_band": Metric("accuracy, band", "", True, 1, _NEEDS_REFERENCE),
    "precision_band": Metric("precision, band", "", True, 1, "missed: 0; false alarm: left out"),
    "recall_band": Metric("recall, band", "", True, 1, "missed: 0; false alarm: left out"),
    "f1_band": Metric("F1, band", "", True, 1, "missed: 0; false alarm: left out"),
    "roc_auc_band": Metric("ROC AUC, band", "", True, 1, _NEEDS_REFERENCE),
    "pr_auc_band": Metric("PR AUC, band", "", True, 1, _NEEDS_REFERENCE),
    "ece": Metric("calibration error, image", "", False, 0, "formula (both empty too)"),
    "ece_band": Metric("calibration error, band", "", False, 0, _NEEDS_REFERENCE),
}
