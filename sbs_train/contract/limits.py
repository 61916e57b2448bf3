"""Why a part of a network stays in float: every reason, in the words of `sbs-train profile` and docs/limits.md."""

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
