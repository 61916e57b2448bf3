"""Why a part of a network stays in float or keeps its channels, in the words of `profile` and docs/limits.md."""

SUBCLASS = "{kind} is not a plain Conv2d or Linear"
COMPUTED_WEIGHTS = "its weights are computed, not stored"
SEVERAL_CALLS = "it runs {calls} times a pass, over different inputs"
SHARED_WEIGHTS = "it shares its weights with another layer"
WEIGHTS_READ = "its weights are read outside of it as well"
CONSTANT_INPUT = "its input does not depend on the image"
OWN_STATE = "it has a {name} of its own"
LAYER_FAILS = "with a quantizer in its place the network computes something else"
WITHOUT_GRADIENTS = "it runs where gradients are off (no_grad, a function with a backward pass of its own)"
ADDITION_FAILS = "with its operands intercepted the network computes something else"

NETWORK_INPUT = "the network's input"
NETWORK_OUTPUT = "the network's output"
MEMBER_IN_FLOAT = "{layer} stays in float"
GROUPED = "{layer} is a grouped convolution"
READ_FLATTENED = "{layer} reads it flattened"
READ_BESIDE = "{layer} reads it beside other channels"
READ_AS_PART = "read as a part of something else: {layers}"
NOT_WRITTEN = "written by no layer"
ONLY_DEPTHWISE = "only depthwise layers write to it"
RESIDUAL_STREAM = "a residual stream: {layers} layers write to it"
OTHER_STREAM = "a stream of several layers, by {operation}: {layers} layers write to it"
OUTSIDE_BLOCKS = "not inside a block: {layer} reads it"
NOT_TRACED = "torch-pruning cannot trace this network ({error})"
NOT_FOLLOWED = "torch-pruning cannot follow it ({error})"
TRIAL_FAILS = "without channels the network computes something else"

LAYERS = (
    SUBCLASS,
    COMPUTED_WEIGHTS,
    SEVERAL_CALLS,
    SHARED_WEIGHTS,
    WEIGHTS_READ,
    CONSTANT_INPUT,
    OWN_STATE,
    LAYER_FAILS,
)
"""Of layers."""
ADDITIONS = (WITHOUT_GRADIENTS, ADDITION_FAILS)
"""Of residual additions."""
CHANNELS = (
    NETWORK_INPUT,
    NETWORK_OUTPUT,
    MEMBER_IN_FLOAT,
    GROUPED,
    READ_FLATTENED,
    READ_BESIDE,
    READ_AS_PART,
    NOT_WRITTEN,
    ONLY_DEPTHWISE,
    RESIDUAL_STREAM,
    OTHER_STREAM,
    OUTSIDE_BLOCKS,
    NOT_TRACED,
    NOT_FOLLOWED,
    TRIAL_FAILS,
)
"""Of channels that are not pruned."""
