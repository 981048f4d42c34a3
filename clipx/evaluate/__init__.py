"""Zero-shot classification and retrieval; all ranks share the work."""

from clipx.evaluate.run import check_evaluation, evaluate_folder, run_evaluation

__all__ = ["check_evaluation", "evaluate_folder", "run_evaluation"]
