"""SBSConv2d, SBSConvTranspose2d and SBSLinear, and modules that follow such a layer because they have its weights."""

from torch import Tensor, nn

from sbs_train.quant.fused import Convolution, Linear
from sbs_train.quant.layers import SBSLayer


class SBSConv2d(SBSLayer, nn.Conv2d):
    """A convolution, dense, grouped or depthwise; x_NCHW in and out."""

    plain = nn.Conv2d

    def forward(self, input: Tensor, module: nn.Conv2d | None = None) -> Tensor:  # `input` is torch's name
        """The output for x_NCHW; `module` has another bias, stride or padding."""
        own, x_NCHW = module or self, input
        if own.padding_mode != "zeros" or isinstance(own.padding, str):
            self._gather(x_NCHW)
            y: Tensor = own._conv_forward(self.quantized_input(x_NCHW), self.quantized_weight(), own.bias)
            return y
        operation = Convolution(stride=own.stride, padding=own.padding, dilation=own.dilation, groups=own.groups)
        return self.run(x_NCHW, operation, own._parameters["bias"])


class SBSLinear(SBSLayer, nn.Linear):
    """A linear layer; the last axis of x holds the features."""

    plain = nn.Linear

    def forward(self, input: Tensor, module: nn.Linear | None = None) -> Tensor:
        """The output for x; `module` has another bias."""
        return self.run(input, Linear(), (module or self)._parameters["bias"])


class SBSConvTranspose2d(SBSLayer, nn.ConvTranspose2d):
    """A transposed convolution of one group; x_NCHW in and out, weight_IOHW."""

    plain = nn.ConvTranspose2d

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The output for x_NCHW."""
        return own_forward(self, input, output_size)


def own_forward(self: SBSLayer, input: Tensor, *more: object) -> Tensor:
    """The float layer's forward. Zeros that it pads with are exact, quantized before the padding or behind it."""
    self._gather(input)
    weight = self.quantized_weight()
    self.__dict__["weight"] = weight  # found before the parameter of this name
    try:
        y: Tensor = self.plain.forward(self, self.quantized_input(input), *more)
    finally:
        del self.__dict__["weight"]
    return y


class SBSFollower(nn.Module):
    """Base of `FollowingConv2d` and `FollowingLinear`: a module with the weights of an SBS layer, which quantizes both.

    Every call is one of the SBS layer's, with the follower's own bias, stride and padding.
    """

    plain: type[nn.Module]
    """The class of the float layer."""
    leader: tuple[SBSLayer]
    """In a tuple, so that it is no child of this module."""

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.leader[0](input, self)
        return y


class FollowingConv2d(SBSFollower, nn.Conv2d):
    """A convolution with the weights of an `SBSConv2d`."""

    plain = nn.Conv2d


class FollowingLinear(SBSFollower, nn.Linear):
    """A linear layer with the weights of an `SBSLinear`."""

    plain = nn.Linear
