"""Segmentation against NumPy: losses, mean IoU, images and masks that stay together, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data.masks import eval_transform, mask_data, train_transform
from sbs_train.tasks.feed import Feed
from sbs_train.tasks.load import task_of
from sbs_train.tasks.protocol import Divided, Share
from sbs_train.tasks.segmentation import Segmentation

CLASSES, SIDE = 3, 16


def write(root, count=12, side=SIDE, seed=0):
    """Pictures whose red channel is 80 times the class of the mask."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            mask = rng.integers(0, CLASSES, (side // 4, side // 4)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
            image = np.zeros((side, side, 3), np.uint8)
            image[..., 0] = 80 * mask
            mask[0, :2] = 255
            Image.fromarray(image).save(root / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def task(root):
    return Segmentation(data=mask_data("folder", root, image_size=SIDE, workers=0), batch_size=4)


class Fixed(nn.Module):
    """Logits by a convolution of one pixel, in torchvision's dict; at half the size where asked."""

    def __init__(self, half=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.aux, self.half = nn.Conv2d(3, CLASSES, 1), nn.Conv2d(3, CLASSES, 1), half

    def forward(self, x):
        x = x[:, :, ::2, ::2] if self.half else x
        found = {"out": self.conv(x)}
        return found | ({"aux": self.aux(x)} if self.training else {})


def numpy_losses(logits, masks):
    """Mean cross-entropy of every image over the pixels that count."""
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    counted = masks != 255
    picked = np.take_along_axis(log_p, np.where(counted, masks, 0)[:, None], 1)[:, 0]
    return np.array([-picked[n][counted[n]].mean() for n in range(len(masks))])


def test_loss_and_miou_are_those_of_numpy(task):
    model = Fixed().eval()
    batches = list(task.data.eval_batches("test", 5))
    x = torch.cat([batch[0] for batch in batches])
    masks = torch.cat([batch[1] for batch in batches]).numpy()
    with torch.no_grad():
        logits = model(x)["out"].numpy()
    found = task.evaluate(model, "test")
    losses = numpy_losses(logits, masks)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5) and found["images"] == 12
    answers, counted = logits.argmax(1), masks != 255
    shares = []
    for label in range(CLASSES):
        both = ((answers == label) & (masks == label) & counted).sum()
        either = (((answers == label) | (masks == label)) & counted).sum()
        shares.append(both / either)
    assert next(iter(found)) == "miou" and found["miou"] == pytest.approx(100 * np.mean(shares), rel=1e-5)
    model.train()
    outputs = model(x)
    expected = losses.mean() + 0.5 * numpy_losses(outputs["aux"].detach().numpy(), masks).mean()
    assert float(task.loss(model, (x, torch.from_numpy(masks))).detach()) == pytest.approx(expected, rel=1e-5)


def test_logits_of_classes_that_the_data_lacks_are_no_answers(task):
    class Wider(Fixed):
        def forward(self, x):
            found = super().forward(x)
            return {**found, "out": torch.cat([found["out"], found["out"].amax(1, keepdim=True) + 1], 1)}

    assert task.evaluate(Wider().eval(), "test")["miou"] == task.evaluate(Fixed().eval(), "test")["miou"]


def test_an_image_without_a_pixel_that_counts_costs_nothing(task):
    x, y = task.example(3)
    y[1] = 255
    found = task._losses(Fixed()(x)["out"], y)
    assert found[1] == 0 and (found[[0, 2]] > 0).all()


def test_ranks_and_micro_batches_share_an_epoch(task):
    assert isinstance(task, Divided)
    feed = Feed(task=task, accumulate=2)
    whole = [torch.cat([x for x, _ in parts]) for parts in feed.steps(7, 4, first=1)]
    shares = [feed.shared(Share(rank=rank, world=2)) for rank in (0, 1)]
    for step, parts in enumerate(zip(*(share.steps(7, 4, first=1) for share in shares), strict=True)):
        mine = [torch.cat([x for x, _ in rank]) for rank in parts]
        assert torch.equal(torch.stack(mine, 1).flatten(0, 1), whole[step])
    model = Fixed().eval()
    sums = {}

    def add(key):  # both ranks put their part in, in turn
        def total(tensor):
            sums.setdefault(key, []).append(tensor)
            return sum(sums[key]) if len(sums[key]) == 2 else tensor

        return total

    calls = iter([])
    found = []
    for rank in (0, 1):
        calls = iter(("confusion", "loss"))
        share = Share(rank=rank, world=2, sum=lambda tensor: add(next(calls))(tensor))  # noqa: B023
        found.append(task.shared(share).evaluate(model, "test"))
    assert found[1] == pytest.approx(task.evaluate(model, "test"))


@pytest.mark.parametrize("make", [train_transform, eval_transform])
def test_images_and_masks_are_changed_together(make):
    mask = torch.randint(0, CLASSES, (4, 6), dtype=torch.uint8).repeat_interleave(24, 0).repeat_interleave(24, 1)
    image = (80 * mask)[None].repeat(3, 1, 1)
    torch.manual_seed(0)
    for _ in range(5):
        pixels, classes = make(64)(image, mask)
        assert pixels.shape == (3, 64, 64) and classes.shape == (64, 64) and classes.dtype == torch.uint8
        assert set(classes.unique().tolist()) <= set(range(CLASSES))  # no number between two classes
        assert ((pixels[0].float() - 80 * classes.float()).abs() < 40).float().mean() > 0.8


def test_a_split_repeats_and_the_test_split_is_its_own_folder(root):
    one, two = (mask_data("x", root, image_size=SIDE, workers=0) for _ in range(2))
    assert (one.train, one.val) == (two.train, two.val) and len(one.val) == 2 and len(one.train) == 10
    assert not set(one.train) & set(one.val) and all("/val/" in str(image) for image, _ in one.test)
    assert one.num_classes == CLASSES
    (root / "classes.txt").write_text("sky\nroad\n\ncar\ntree\n")
    try:
        assert mask_data("x", root, image_size=SIDE, workers=0).num_classes == 4
    finally:
        (root / "classes.txt").unlink()


def spoiled(tmp_path, change):
    root = write(tmp_path / "data", count=3)
    change(root)
    data = mask_data("x", root, image_size=SIDE, workers=0)
    for split in ("train", "val", "test"):
        list(data.eval_batches(split, 4))


def resized(root):
    path = root / "val" / "masks" / "1.png"
    Image.open(path).resize((8, 8)).save(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "train" / "masks" / "1.png").unlink(), r"no mask for 1\.png"),
        (lambda root: (root / "val" / "images" / "2.png").unlink(), r"no image for the mask 2\.png"),
        (lambda root: [p.unlink() for p in (root / "val").rglob("*.png")], "holds no pictures"),
        (lambda root: (root / "val").rename(root / "test"), "is not there"),
        (resized, "is 8x8, its image 16x16"),
        (lambda root: Image.new("RGB", (16, 16)).save(root / "train" / "masks" / "0.png"), "of mode RGB"),
        (lambda root: (root / "classes.txt").write_text("one\ntwo\n"), "holds the class 2, but there are 2"),
        (lambda root: (root / "classes.txt").write_text("one\n"), "needs 2 to 255"),
        (lambda root: (root / "val" / "masks" / "0.png").write_bytes(b"\x89PNG and no more"), "cannot be read"),
        (lambda root: (root / "val" / "images" / "0.png").write_bytes(b""), "cannot be read"),
    ],
)
def test_what_is_wrong_with_the_data_is_named(tmp_path, change, said):
    with pytest.raises(SbsError, match=said):
        spoiled(tmp_path, change)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda x: x.mean((2, 3)), r"\[2, 3\]"),
        (lambda x: x[:, :2], "2 logits a pixel, the data has 3 classes"),
        (lambda x: {"logits": x}, "dict with logits"),
        (lambda x: (x, x), "tuple"),
    ],
)
def test_a_model_of_another_form_is_refused(task, output, said):
    with pytest.raises(SbsError, match=said):
        task.loss(output, task.example(2))


def test_logits_of_another_size_are_resized(task):
    batch = next(iter(task.train_batches(0)))
    assert torch.isfinite(task.loss(Fixed(half=True).eval(), batch))


def test_the_task_by_name(root):
    found = task_of(TrainConfig(task="segmentation", data=f"folder:{root}", image_size=SIDE, workers=0, batch_size=4))
    assert isinstance(found, Segmentation) and found.arguments == {"num_classes": CLASSES}
    with pytest.raises(SbsError, match="needs --data folder:DIR"):
        task_of(TrainConfig(task="segmentation", data="digits"))
