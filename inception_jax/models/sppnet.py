"""SPP-net, the MSRA team's network: a pyramid of bins takes a map of any size.

He, Zhang, Ren & Sun 2014, arXiv:1406.4729. Over two of the paper's networks (Table 1): ZF-5, with
the paddings and the response normalisation of the authors' code (ShaoqingRen/SPP_net,
model-defs/Zeiler_conv5.prototxt), and Overfeat-7, with paddings that give the maps of the paper's
table. Layers are named as in that code. Used through `models.build`.
"""

import jax
import jax.numpy as jnp

from inception_jax.config import choose
from inception_jax.errors import UserError
from inception_jax.models import layers
from inception_jax.models.chain import Chain, Conv, Norm, Pool

BASES = {
    "zf5": (  # maps of 110, 55, 26 and 13 pixels at 224; 10 at 180
        Conv("conv1", 96, 7, 2, 1),
        Norm("norm1", layers.lrn_within),
        Pool("pool1", 3, 2),
        Conv("conv2", 256, 5, 2, bias=1.0),
        Norm("norm2", layers.lrn_within),
        Pool("pool2", 3, 2),
        Conv("conv3", 384, 3, 1, 1),
        Conv("conv4", 384, 3, 1, 1, bias=1.0),
        Conv("conv5", 256, 3, 1, 1, bias=1.0),
    ),
    "overfeat7": (  # 109, 36 and 18
        Conv("conv1", 96, 7, 2),
        Pool("pool1", 3, 3, ceil=False),
        Norm("norm1", layers.lrn_within),
        Conv("conv2", 256, 5, 1, 2, bias=1.0),
        Pool("pool2", 2, 2, ceil=False),
        Conv("conv3", 512, 3, 1, 1),
        *(Conv(f"conv{number}", 512, 3, 1, 1, bias=1.0) for number in range(4, 8)),
    ),
}


class SPPNet(Chain):
    """The ILSVRC 2014 network, its defaults the published ones.

    Attributes:
      base: zf5 or overfeat7.
      pyramid: the bins along a side of each level, coarse to fine: 50 bins in all.
    """

    base: str = "zf5"
    pyramid: tuple[int, ...] = (1, 2, 3, 6)

    hidden_bias = 1.0

    def table(self):
        return BASES[self.base]

    def flatten(self, x_BHWC: jax.Array) -> jax.Array:
        """The largest response in each bin of each level, whatever the size of the map."""
        levels = []
        for bins in self.pyramid:
            with jax.named_scope(f"spp_{bins}x{bins}"):
                level = layers.bin_pool(x_BHWC, bins)
            levels.append(super().flatten(level))
        return jnp.concatenate(levels, axis=-1)

    def check(self, image_size: int) -> None:
        """Raises UserError where the network cannot be built for square images of that size."""
        choose("model.base", self.base, BASES)
        if not self.pyramid:
            raise UserError("config.model.pyramid is empty: it needs a level, as in (1, 2, 3, 6)")
        if not all(type(bins) is int and bins > 0 for bins in self.pyramid):
            raise UserError(
                f"config.model.pyramid is {tuple(self.pyramid)}: it needs whole numbers above 0"
            )
        super().check(image_size)
        level, side = max(self.pyramid), self.map_size(image_size)
        if level > side:
            least = layers.least_size(lambda size: self.map_size(size) >= level)
            raise UserError(
                f"config.model.pyramid={tuple(self.pyramid)} has a level of {level}x{level} bins,"
                f" more than the {side}x{side} pixels of the last map at {image_size}: lower it, or"
                f" set config.data.image_size to {least} or more"
            )
