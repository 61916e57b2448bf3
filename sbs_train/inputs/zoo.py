"""Float networks of torchvision, timm, or a function in a user's own file.

torchvision:resnet18        timm:mobilenetv3_small_100        path/to/file.py:factory
"""

import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.trust import is_code
from sbs_train.inputs.state import load_state
from sbs_train.inputs.userfile import load_file

RGB = 3


def is_foreign(name: str) -> bool:
    """Whether a model's name has one of the three forms."""
    return name.startswith(("torchvision:", "timm:")) or is_code(name)


def foreign_model(name: str, channels_in: int, arguments: Mapping[str, int], size: tuple[int, int] | None) -> nn.Module:
    """Build the network `name`, with the initial weights of its library or the user's function; no downloads.

    Args:
        arguments: further arguments of the network's builder; a user's function gets those that its parameters name.
        size: height and width of the images, for networks that are built for one size.

    Raises:
        SbsError: the network or function is unknown, its library is missing, or it cannot be built.
    """
    library, _, rest = name.partition(":")
    try:
        if library == "torchvision":
            return _torchvision(rest, channels_in, arguments, size)
        if library == "timm":
            return _timm(rest, channels_in, arguments, size)
        return _from_file(name, arguments)
    except SbsError:
        raise
    except Exception as error:  # foreign code may raise anything
        raise SbsError(f"--model {name} cannot be built: {type(error).__name__}: {_first_line(error)}") from error


def load_published(model: nn.Module, name: str) -> list[str]:
    """Load the published weights of torchvision or timm into `model`; returns names of tensors that have none.

    These belong to the classifier if the number of classes differs. Weights are downloaded once, into torch's cache.

    Raises:
        SbsError: no weights are published for `name`, the download fails, or they belong to another network.
    """
    library, _, rest = name.partition(":")
    if library not in ("torchvision", "timm"):
        raise SbsError(f"--pretrained: nobody publishes weights for {name}; give a file with --weights")
    try:
        published = _published(library, rest)
    except Exception as error:  # a library may raise anything without network, space or weights
        raise SbsError(
            f"--pretrained: no weights for {name} ({_first_line(error)}); give a file with --weights"
        ) from error
    own = model.state_dict()
    fitting = {key: value for key, value in published.items() if key in own and own[key].shape == value.shape}
    left = [key for key in published if key not in fitting]
    if len(left) > len(published) // 4:
        raise SbsError(f"--pretrained: the published weights of {name} are those of another network ({left[0]})")
    load_state(model, fitting, strict=False)
    return left


def _published(library: str, name: str) -> dict[str, Tensor]:
    if library == "torchvision":
        from torchvision import models

        state: dict[str, Tensor] = models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
        return state
    import timm

    whole: nn.Module = timm.create_model(name, pretrained=True)
    return whole.state_dict()


def _torchvision(name: str, channels_in: int, arguments: Mapping[str, int], size: tuple[int, int] | None) -> nn.Module:
    from torchvision import models

    known = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
    if name not in known:
        raise SbsError(f"torchvision has no classifier or segmentation network {name}{_similar(name, known)}")
    options: dict[str, Any] = {"weights": None, **arguments}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # torchvision would download them
    if name in ("googlenet", "inception_v3"):
        # Auxiliary classifiers change the network's outputs in training.
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_") and size is not None:
        if size[0] != size[1]:
            raise SbsError(f"--model torchvision:{name} takes square images, not {size[0]}x{size[1]}")
        options["image_size"] = size[0]
    model: nn.Module = models.get_model(name, **options)
    if channels_in != RGB:
        _replace_stem(model, channels_in)
    return model


def _timm(name: str, channels_in: int, arguments: Mapping[str, int], size: tuple[int, int] | None) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise SbsError(f"--model timm:{name} needs timm; install it with `pip install timm`")
    import timm

    if not timm.is_model(name):
        raise SbsError(f"timm has no model {name}{_similar(name, timm.list_models())}")
    options: dict[str, Any] = {"pretrained": False, "in_chans": channels_in, **arguments}
    try:
        model: nn.Module = timm.create_model(name, **options, img_size=size)
    except TypeError:  # most networks take any size
        model = timm.create_model(name, **options)
    return model


def _from_file(name: str, arguments: Mapping[str, int]) -> nn.Module:
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise SbsError(f"--model {name}: there is no file {file}; give path/to/file.py:factory")
    module = load_file(path)
    factory = getattr(module, function, None)
    if not callable(factory):
        raise SbsError(f"--model {name}: {file} has no function {function}; it must return a torch.nn.Module")
    named = inspect.signature(factory).parameters
    model = factory(**{name: value for name, value in arguments.items() if name in named})
    if not isinstance(model, nn.Module):
        raise SbsError(f"--model {name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _replace_stem(model: nn.Module, channels_in: int) -> None:
    """Replace the first convolution by one with `channels_in` channels and new weights."""
    name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == RGB)
    stem = nn.Conv2d(
        channels_in,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    model.set_submodule(name, stem)


def _similar(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, 3, 0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
