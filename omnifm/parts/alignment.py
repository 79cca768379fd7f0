"""SPAlign: keep a site's spectral token near the prototypes of the federation.

Letters: b batch, k retrieved prototypes, d token width.  Paper: arXiv 2603.21660, sec. 3.3, eq. (5) and (6).
"""

from jaxtyping import Float
from torch import Tensor


def spectral_alignment(s: Float[Tensor, "b d"], retrieved: Float[Tensor, "b k d"]) -> Float[Tensor, ""]:
    """|| s - mean(S_g) ||^2, averaged over the batch (eq. 5).

    Prototypes are constants: the gradient changes the site's tokens, never the prototypes.

    >>> import torch
    >>> token = torch.tensor([[1.0, 0.0]])
    >>> spectral_alignment(token, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))  # the mean is (0.5, 0.5)
    tensor(0.5000)

    Args:
        s: spectral tokens of unit length.
        retrieved: S_g, each sample's own prototypes; k = 0 gives 0.

    Returns:
        A number in [0, 4] for unit tokens and prototypes in the unit ball.
    """
    if retrieved.shape[1] == 0:
        return s.new_zeros(())
    return (s - retrieved.detach().mean(dim=1)).square().sum(dim=-1).mean()
