"""VGG: nothing but 3x3 convolutions (Simonyan & Zisserman 2014, arXiv:1409.1556, Table 1).

Configurations A, B, D and E, of 11, 13, 16 and 19 layers. Parameters are named as in the authors'
Caffe models: `conv3_1`, `fc6`. Used through `models.build`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from inception_jax.models import layers
from inception_jax.models.chain import Chain, Conv, Pool

CHANNELS = (64, 128, 256, 512, 512)  # of the five stages, each of which ends in a pooling
CONVOLUTIONS = {  # layers: convolutions in each stage
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(Chain):
    """One of the four networks, its defaults the published ones.

    Attributes:
      depth: 11, 13, 16 or 19.
      batch_norm: batch normalisation after every convolution, instead of its bias. Off in the
        paper.
      batch_norm_epsilon: added to the variance.
    """

    depth: int = 16
    batch_norm: bool = False
    batch_norm_epsilon: float = 1e-5

    def table(self):
        rows = []
        for stage, number in enumerate(CONVOLUTIONS[self.depth], start=1):
            channels = CHANNELS[stage - 1]
            rows += [Conv(f"conv{stage}_{i + 1}", channels, 3, 1, 1) for i in range(number)]
            rows.append(Pool(f"pool{stage}", 2, 2, ceil=False))
        return tuple(rows)

    def unit(self, dtype: jnp.dtype, train: bool) -> layers.Unit:
        """The form of its layers."""
        return (
            super()
            .unit(dtype, train)
            ._replace(batch_norm=self.batch_norm, batch_norm_epsilon=self.batch_norm_epsilon)
        )

    def kernel_init(self) -> Callable:
        """Glorot & Bengio's.

        The paper began the deeper networks with parts of a trained A, and found after its
        submission that this makes that unnecessary (section 3.1).
        """
        return nn.initializers.glorot_normal()
