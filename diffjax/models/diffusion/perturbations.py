"""Perturbations of a network for guidance. A public function of this file is one that the sampling settings can name.

Guidance moves away from the estimate of the perturbed network, without another model. Each returns the fields that the
network gets. Blocks are those of a DiT, or the attention blocks of a UNet in the order of evaluation, counted from 0.
"""

from collections.abc import Sequence


def none() -> dict[str, Sequence[int]]:
    """Returns no fields: the network itself, without guidance by it."""
    return {}


def identity_attention(*blocks: float) -> dict[str, Sequence[int]]:
    """Makes each position attend to itself alone in the self-attention of these blocks: perturbed-attention guidance.

    Reference: PAG (Ahn et al. 2024), section 4.
    """
    return {"identity_attention": tuple(map(int, blocks))}


def skip_blocks(*blocks: float) -> dict[str, Sequence[int]]:
    """Leaves these blocks out: skip-layer guidance.

    Reference: STG (Hyung et al. 2024).
    """
    return {"skipped_blocks": tuple(map(int, blocks))}
