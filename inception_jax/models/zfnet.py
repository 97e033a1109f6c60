"""ZFNet, Clarifai's published network (Zeiler & Fergus 2013, arXiv:1311.2901), and ZFNet-512.

ZFNet (Figure 3) is AlexNet without its halves, with a 7x7/2 instead of an 11x11/4 convolution to
begin with, and a stride of 2 in the second. Maps of 110, 55, 26, 13 and 6 pixels at 224. Layers are
named as those of AlexNet. Used through `models.build`.
"""

import functools

from inception_jax.models import layers
from inception_jax.models.chain import Chain, Conv, Norm, Pool


class ZFNet(Chain):
    """The network of Figure 3, its defaults the published ones.

    Attributes:
      lrn: contrast normalisation across channels, after the first two poolings.
      lrn_k, lrn_alpha: its constants, alpha divided by the size of 5. The paper gives none:
        these are AlexNet's.
    """

    lrn: bool = True
    lrn_k: float = 2.0
    lrn_alpha: float = 5e-4

    def table(self):
        normalise = functools.partial(layers.lrn, k=self.lrn_k, alpha=self.lrn_alpha)
        norms = [(Norm(name, normalise),) if self.lrn else () for name in ("norm1", "norm2")]
        return (
            Conv("conv1", 96, 7, 2, 1),
            Pool("pool1", 3, 2),
            *norms[0],
            Conv("conv2", 256, 5, 2),
            Pool("pool2", 3, 2),
            *norms[1],
            Conv("conv3", 384, 3, 1, 1),
            Conv("conv4", 384, 3, 1, 1),
            Conv("conv5", 256, 3, 1, 1),
            Pool("pool5", 3, 2, ceil=False),  # 13 to 6
        )


class ZFNet512(Chain):
    """The wider network that goes by ZFNet-512 in the ONNX Model Zoo, its defaults those of there.

    Normalises before it pools, pads nowhere but in the last three convolutions, and leaves out what
    hangs over the edge: maps of 109, 54, 25, 12, 12 and 6 pixels at 224.

    Attributes:
      lrn: response normalisation across channels after the first two convolutions.
      lrn_k, lrn_alpha: its constants, alpha divided by the size of 5.
    """

    lrn: bool = True
    lrn_k: float = 2.0
    lrn_alpha: float = 5e-4

    hidden = (4096, 1024)

    def table(self):
        normalise = functools.partial(layers.lrn, k=self.lrn_k, alpha=self.lrn_alpha)
        norms = [(Norm(name, normalise),) if self.lrn else () for name in ("norm1", "norm2")]
        return (
            Conv("conv1", 96, 7, 2),
            *norms[0],
            Pool("pool1", 3, 2, ceil=False),
            Conv("conv2", 256, 5, 2),
            *norms[1],
            Pool("pool2", 3, 2, ceil=False),
            *(Conv(name, 512, 3, 1, 1) for name in ("conv3", "conv4", "conv5")),
            Pool("pool5", 2, 2, ceil=False),
        )
