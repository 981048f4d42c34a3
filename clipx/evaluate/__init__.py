"""Zero-shot classification and retrieval, shared among all ranks."""

from clipx.evaluate.run import evaluate_folder, run_evaluation

__all__ = ["evaluate_folder", "run_evaluation"]
