"""Scaled dot product attention, by torch's fused kernels or in plain steps."""

import torch
import torch.nn.functional as F
from torch import Tensor

IMPLEMENTATIONS = ("sdpa", "eager")


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    implementation: str | None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """softmax(query · keyᵀ / √c) · value.

    Args:
        query: (B, heads, q, c).
        key, value: (B, heads, k, c).
        implementation: One of `IMPLEMENTATIONS`; the fused kernels give no weights.
        mask: (q, k), False where the query of the row does not see the key of the column.
        dropout: Probability to drop a weight.
        need_weights: Whether the weights are asked for.

    Returns:
        (B, heads, q, c), and the weights (B, heads, q, k) or None.
    """
    if implementation != "eager" and not need_weights:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout), None
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = F.dropout(scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)), dropout)
    weights = weights.to(value.dtype)
    return weights @ value, weights
