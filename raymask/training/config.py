"""Options of `raymask train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymask.config import OPEN_CLUSTER, Precision, check_urls, flag, option, require, worker_bounds

REFERENCE_BATCH = 16  # the images a step for which learning rates are given, as in He et al. 2017

Norm = Literal["batch_norm", "frozen_batch_norm", "group_norm"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["step", "cosine"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train or fine-tune a Mask R-CNN; the result is a model folder that `raymask segment --weights` takes.

    DATA is a COCO annotation file, or tables of masks: an output of raymask, or a folder with images/*.parquet and
    instances/*.parquet of the same columns. Run the same command again to go on from the last checkpoint, with another
    number of workers if you like.
    """

    data: str = option("annotations to train on: COCO JSON, or tables of masks", metavar="URL", group="what")
    out: str = option("model folder to write, with checkpoints and logs in it", metavar="URL", group="what")
    images: str | None = option(
        "folder of the images that the annotations name relatively; default: the annotations' own folder",
        default=None,
        metavar="URL",
        group="what",
    )
    val: str | None = option("annotations to validate on, COCO JSON", default=None, metavar="URL", group="what")
    val_images: str | None = option(
        "folder of the images of --val; default: that of --images", default=None, metavar="URL", group="what"
    )
    model: str | None = option(
        "architecture, for weights that do not say it; default: maskrcnn_resnet50_fpn", default=None, group="what"
    )
    weights: str | None = option(
        "where to start: model folder, weights file or torchvision weights name, of a Mask R-CNN or of its backbone "
        "alone; default: random weights",
        default=None,
        metavar="URL",
        group="what",
    )

    norm: Norm | None = option(  # noqa: RUF009 - ruff does not see that this makes a field
        "normalisation in the backbone; default: as in the weights, frozen_batch_norm over a backbone's weights",
        default=None,
        group="model",
    )
    freeze: int = option(
        "keep this many stages of the backbone as they are, the stem first", default=0, metavar="N", group="model"
    )
    image_mean: tuple[float, ...] | None = option(
        "mean of R,G,B in [0, 1]; default: the weights', mostly ImageNet's", default=None, metavar="LIST", group="model"
    )
    image_std: tuple[float, ...] | None = option(
        "standard deviation of R,G,B; default: the weights', mostly ImageNet's",
        default=None,
        metavar="LIST",
        group="model",
    )
    min_size: int | None = option(
        "resize the shorter side to this many pixels; default: the weights', mostly 800",
        default=None,
        metavar="PX",
        group="model",
    )
    max_size: int | None = option(
        "but the longer side to no more than this; default: the weights', mostly 1333",
        default=None,
        metavar="PX",
        group="model",
    )
    proposals: int = option("region proposals an image, while training", default=2000, metavar="N", group="model")
    rpn_samples: int = option(
        "anchors an image that the proposal losses are computed on", default=256, metavar="N", group="model"
    )
    box_samples: int = option(
        "proposals an image that the box and mask losses are computed on", default=512, metavar="N", group="model"
    )

    epochs: int = option("times that every image is seen", default=12, metavar="N", group="optimisation")
    batch_size: int = option("images that a worker computes at once", default=2, metavar="N", group="optimisation")
    accumulate: int = option(
        "such batches that a worker adds up before a step", default=1, metavar="N", group="optimisation"
    )
    optimizer: Optimizer = option("sgd or adamw", default="sgd", group="optimisation")  # noqa: RUF009 - as above
    lr: float | None = option(
        f"learning rate for {REFERENCE_BATCH} images a step; default: 0.02 with sgd, 1e-4 with adamw",
        default=None,
        group="optimisation",
    )
    fixed_lr: bool = option(
        "take --lr as it is; otherwise it is scaled with the images a step, for adamw with their square root",
        default=False,
        group="optimisation",
    )
    momentum: float = option("of sgd", default=0.9, group="optimisation")
    weight_decay: float | None = option("default: 1e-4 with sgd, 0.05 with adamw", default=None, group="optimisation")
    schedule: Schedule = option(  # noqa: RUF009 - as above
        "how the learning rate falls: in steps of ten, or as a cosine to zero", default="cosine", group="optimisation"
    )
    milestones: tuple[float, ...] = option(
        "with --schedule step: the parts of the training after which the rate falls",
        default=(0.67, 0.92),
        metavar="LIST",
        group="optimisation",
    )
    warmup_images: int | None = option(
        "images over which the rate rises from nothing; default: 16,000, but no more than a tenth of the training",
        default=None,
        metavar="N",
        group="optimisation",
    )
    clip: float | None = option(
        "scale gradients down to this norm where it is larger; default: not at all",
        default=None,
        metavar="NORM",
        group="optimisation",
    )
    ema: float | None = option(
        "keep an exponential moving average of the weights with this decay, such as 0.999, and give that out",
        default=None,
        metavar="DECAY",
        group="optimisation",
    )
    seed: int = option("of order, augmentation, sampling and new weights", default=0, group="optimisation")

    flip: float = option("probability of the mirror image", default=0.5, metavar="P", group="augmentation")
    min_scale: float = option(
        "least size by chance, relative to --min-size", default=0.8, metavar="X", group="augmentation"
    )
    max_scale: float = option(
        "largest size by chance; what is then larger than without is cropped by chance",
        default=1.25,
        metavar="X",
        group="augmentation",
    )
    photometric: float = option(
        "probability of other brightness, contrast, saturation and hue", default=0.5, metavar="P", group="augmentation"
    )
    trust_images: bool = option(
        "do not read every image once before the first step to find those that cannot be read",
        default=False,
        group="augmentation",
    )
    max_pixels: int = option(
        "an image of more pixels counts as unreadable", default=100_000_000, metavar="N", group="augmentation"
    )
    max_bytes: int = option(
        "a file of more bytes counts as unreadable", default=256 * 1024 * 1024, metavar="N", group="augmentation"
    )

    workers: str | None = option(
        "training workers: N or MIN:MAX, of which as many work as there is room for; default: one a GPU, or one",
        default=None,
        metavar="N[:MAX]",
        group="running",
    )
    gpus_per_worker: int | None = option(
        "1 to train on GPUs, and wait for the first to join where the cluster has none yet; 0 for CPUs; default: GPUs "
        "where the cluster has them",
        default=None,
        metavar="N",
        group="running",
    )
    precision: Precision = option(  # noqa: RUF009 - as above
        "arithmetic of the network; auto takes bf16 on GPUs that have it", default="auto", group="running"
    )
    checkpoint_images: int | None = option(
        "write a checkpoint each time this many more images have been seen; default: every epoch",
        default=None,
        metavar="N",
        group="running",
    )
    val_interval: int = option(
        "epochs from one validation to the next; the last epoch is always validated",
        default=1,
        metavar="N",
        group="running",
    )
    max_failures: int = option(
        "go on from the last checkpoint after workers died, at most so often", default=8, metavar="N", group="running"
    )
    track: tuple[str, ...] = option(
        "send what is logged there too: mlflow, wandb", default=(), metavar="LIST", group="running"
    )
    quiet: bool = option("print nothing but errors", default=False, group="running")
    allow_open_cluster: bool = option(OPEN_CLUSTER, default=False, group="running")

    def __post_init__(self) -> None:
        require(bool(self.data), "--data is empty; name a COCO annotation file or tables of masks")
        require(bool(self.out), "--out is empty; name a folder or a URL for the model")
        check_urls(self)
        for name in (
            *("min_size", "max_size", "proposals", "rpn_samples", "box_samples", "epochs", "batch_size", "accumulate"),
            *("max_pixels", "max_bytes", "checkpoint_images", "val_interval"),
        ):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{flag(name)} is {value}; it must be at least 1")
        for name in ("freeze", "warmup_images", "max_failures", "seed", "weight_decay", "momentum"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{flag(name)} is {value}; it cannot be negative")
        for name in ("lr", "clip", "min_scale"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{flag(name)} is {value}; it must be above 0")
        for name in ("flip", "photometric", "ema", "momentum"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{flag(name)} is {value}; it lies between 0 and 1")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            require(value is None or len(value) == 3, f"{flag(name)} is {value}; three numbers are meant")
        require(self.gpus_per_worker in (None, 0, 1), f"--gpus-per-worker is {self.gpus_per_worker}; 0 or 1 is meant")
        require(self.min_scale <= self.max_scale, f"--min-scale {self.min_scale} is above --max-scale {self.max_scale}")
        require(
            all(0 < m < 1 for m in self.milestones), f"--milestones are {self.milestones}; they lie between 0 and 1"
        )
        self.worker_range()

    def worker_range(self) -> tuple[int, int] | None:
        """`--workers` as (min, max); None when it is left to the cluster."""
        return worker_bounds(self.workers)

    @property
    def augments(self) -> bool:
        return bool(self.flip or self.photometric) or (self.min_scale, self.max_scale) != (1.0, 1.0)
