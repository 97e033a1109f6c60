"""AlexNet, the SuperVision team's network of 2012 (Krizhevsky, Sutskever & Hinton 2012).

Three forms:
  grouped       as published: two halves of the channels on two GPUs, which meet in conv3 and in
                the fully connected layers only (section 3.5)
  ungrouped     the same without the halves
  single_tower  for one GPU: narrower (Krizhevsky 2014, arXiv:1404.5997); with 256 channels in
                conv4 and without response normalisation, as torchvision's

Parameters are named as in BVLC/caffe, models/bvlc_alexnet. Used through `models.build`.
"""

import functools

from inception_jax.config import choose
from inception_jax.models import layers
from inception_jax.models.chain import Chain, Conv, Norm, Pool

CHANNELS = {  # of conv1 to conv5
    "grouped": (96, 256, 384, 384, 256),
    "ungrouped": (96, 256, 384, 384, 256),
    "single_tower": (64, 192, 384, 256, 256),
}


class AlexNet(Chain):
    """The ILSVRC 2012 network, its defaults the published ones.

    Attributes:
      variant: grouped, ungrouped or single_tower.
      lrn: response normalisation after conv1 and conv2; None: unless single_tower.
      lrn_k, lrn_alpha: its constants. The paper's are k = 2 and, undivided, alpha = 1e-4 (section
        3.3), which is 5e-4 where alpha is divided by the size of 5, as here; Caffe's network has
        k = 1 and 1e-4, divided.
    """

    variant: str = "grouped"
    lrn: bool | None = None
    lrn_k: float = 2.0
    lrn_alpha: float = 5e-4

    hidden_bias = 1.0  # section 5, as those of conv2, conv4 and conv5

    def table(self):
        c1, c2, c3, c4, c5 = CHANNELS[self.variant]
        groups = 2 if self.variant == "grouped" else 1
        single = self.variant == "single_tower"
        normalise = functools.partial(layers.lrn, k=self.lrn_k, alpha=self.lrn_alpha)
        wanted = not single if self.lrn is None else self.lrn
        norms = [(Norm(name, normalise),) if wanted else () for name in ("norm1", "norm2")]
        return (
            # 55x55 maps: of 227 pixels without padding, or of 224 with 2, as torchvision's has it
            Conv("conv1", c1, 11, 4, 2 if single else 0),
            *norms[0],
            Pool("pool1", 3, 2),
            Conv("conv2", c2, 5, 1, 2, groups, bias=1.0),
            *norms[1],
            Pool("pool2", 3, 2),
            Conv("conv3", c3, 3, 1, 1),
            Conv("conv4", c4, 3, 1, 1, groups, bias=1.0),
            Conv("conv5", c5, 3, 1, 1, groups, bias=1.0),
            Pool("pool5", 3, 2),
        )

    def check(self, image_size: int) -> None:
        """Raises UserError where the network cannot be built for square images of that size."""
        choose("model.variant", self.variant, CHANNELS)
        super().check(image_size)
