"""Figures: attention overlays, ranked lists of retrieval results, contact sheets, confusion matrices."""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("dcal_hf.visualization needs matplotlib: pip install dcal_hf[pictures]") from error

from .confusion import confusion_figure
from .distractors import DistractorAttention, distractor_attention, distractor_figure
from .figures import attention_figure, ranked_list, save_figure
from .overlays import model_view, photograph_overlay, rollout_overlay, selection_overlay
from .sheets import attention_comparison, contact_sheet, picture_table


__all__ = [
    "DistractorAttention",
    "attention_comparison",
    "attention_figure",
    "confusion_figure",
    "contact_sheet",
    "distractor_attention",
    "distractor_figure",
    "model_view",
    "photograph_overlay",
    "picture_table",
    "ranked_list",
    "rollout_overlay",
    "save_figure",
    "selection_overlay",
]
