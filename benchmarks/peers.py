"""What a user would write instead of raymask, after each tool's own documentation: images in, Parquet of masks out.

    python benchmarks/peers.py NAME --images FOLDER --weights MODEL_FOLDER --out OUT --detections 20

torchvision_first: DataLoader, batches of 4, fp32. torchvision_tuned: all that plain torchvision offers a CPU.
ray_data, daft: as their guides to inference on images have it. All write the same columns from the same weights, one
row a detection, its mask as torchvision pastes it and pycocotools encodes it. Without a model, for what everything
else costs: ray_data_null, the same pipeline around an actor that does nothing; pillow_only, each core decoding.

Prints one line of JSON: images, seconds (from before the first import of a library until the last process has ended),
first_result_s where the tool shows it, detections.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor
    from torchvision.models.detection import MaskRCNN

START = time.perf_counter()

# ------------------------------------------------------------------------------------------- the same for every peer


def schema() -> pa.Schema:
    import pyarrow as pa

    mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    return pa.schema(
        [
            ("uri", pa.string()),
            ("label", pa.int64()),
            ("score", pa.float32()),
            ("box", pa.list_(pa.float32())),
            ("mask", mask),
        ]
    )


def load_network(weights: str, detections: int) -> MaskRCNN:
    """torchvision's Mask R-CNN in evaluation mode, with the weights of a model folder."""
    from raymask.model import build, load_model

    model = load_model(weights)
    network = build(model.spec.with_options(max_detections=detections))
    network.load_state_dict(dict(model.weights), strict=False)
    return network


def rows(uri: str, output: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The detections of one image, from what torchvision's model returns for it."""
    from pycocotools import mask as coco_mask

    found = []
    masks = (output["masks"][:, 0] > 0.5).numpy()
    labels, scores, boxes = (output[key].tolist() for key in ("labels", "scores", "boxes"))
    for label, score, box, mask in zip(labels, scores, boxes, masks, strict=True):
        rle = coco_mask.encode(mask.astype("uint8", order="F"))
        rle = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
        found.append({"uri": uri, "label": label, "score": score, "box": box, "mask": rle})
    return found


def table(found: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(found, schema())


# --------------------------------------------------------------------------------------------------- torchvision


class Photos:
    """A map-style dataset of (path, image); images are 3 x H x W float32 in [0, 1], as torchvision wants them."""

    def __init__(self, images_dir: str) -> None:
        self.paths = sorted(Path(images_dir).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        from torchvision.io import ImageReadMode, decode_image

        path = str(self.paths[index])
        return path, decode_image(path, ImageReadMode.RGB) / 255


def collate(batch: list[tuple[str, Tensor]]) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Paths and images; the latter not stacked, since the model takes images of any sizes."""
    paths, images = zip(*batch, strict=True)
    return paths, images


def torchvision_first(images_dir: str, weights: str, out: str, *, detections: int) -> float:
    import pyarrow.parquet as pq
    import torch
    from torch.utils.data import DataLoader

    network = load_network(weights, detections)
    photos: Any = Photos(images_dir)
    loader: Any = DataLoader(photos, batch_size=4, collate_fn=collate)
    first_result = 0.0
    with pq.ParquetWriter(out, schema()) as writer, torch.inference_mode():
        for paths, images in loader:
            outputs = network(list(images))
            for path, output in zip(paths, outputs, strict=True):
                writer.write_table(table(rows(path, output)))
            first_result = first_result or time.perf_counter()
    return first_result


def torchvision_tuned(images_dir: str, weights: str, out: str, *, detections: int) -> float:
    import pyarrow.parquet as pq
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(os.cpu_count() or 1)
    capabilities = torch.cpu.get_capabilities()
    bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    network = load_network(weights, detections).to(memory_format=torch.channels_last)
    photos: Any = Photos(images_dir)
    loader: Any = DataLoader(photos, batch_size=1, num_workers=1, collate_fn=collate)
    first_result = 0.0
    with (
        pq.ParquetWriter(out, schema()) as writer,
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),  # around the loop: weights are cast once
    ):
        for paths, images in loader:
            for path, output in zip(paths, network(list(images)), strict=True):
                writer.write_table(table(rows(path, output)))
            first_result = first_result or time.perf_counter()
    return first_result


# ------------------------------------------------------------------------------------------------------ Ray Data


class RayDetector:
    """https://docs.ray.io/en/latest/data/working-with-images.html, "Performing inference on images"."""

    def __init__(self, weights: str, detections: int) -> None:
        self.network = load_network(weights, detections)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> pa.Table:
        import torch

        images = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in batch["image"]]
        with torch.inference_mode():
            outputs = self.network(images)
        return table([row for uri, output in zip(batch["path"], outputs, strict=True) for row in rows(uri, output)])


class RayNull:
    def __call__(self, batch: dict[str, NDArray[Any]]) -> pa.Table:
        import pyarrow as pa

        detections = pa.array([[]] * len(batch["path"]), pa.list_(pa.struct(schema())))
        return pa.table({"uri": pa.array(batch["path"], pa.string()), "detections": detections})


def start_ray() -> None:
    """A quiet Ray on this machine."""
    import logging

    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def ray_data(images_dir: str, weights: str, out: str, *, detections: int) -> None:
    import ray
    import ray.data

    start_ray()
    ds = ray.data.read_images(images_dir, include_paths=True)
    ds = ds.map_batches(
        RayDetector,
        fn_constructor_kwargs={"weights": weights, "detections": detections},
        # An actor a core, which Ray gives one thread; counted as half a core, so that some is left for reading.
        compute=ray.data.ActorPoolStrategy(size=os.cpu_count()),
        num_cpus=0.5,
        batch_size=4,
    )
    ds.write_parquet(out)
    ray.shutdown()


def ray_data_null(images_dir: str, weights: str, out: str, *, detections: int) -> None:
    import ray
    import ray.data

    start_ray()
    ds = ray.data.read_images(images_dir, include_paths=True)
    ds = ds.map_batches(RayNull, compute=ray.data.ActorPoolStrategy(size=1), batch_size=64)
    ds.write_parquet(out)
    ray.shutdown()


# ---------------------------------------------------------------------------------------------------------- Daft


def daft_dataframe(images_dir: str, weights: str, out: str, *, detections: int) -> None:
    """https://docs.daft.ai, "Working with Images" and "Stateful Class UDFs with @daft.cls"."""
    import daft
    import pyarrow as pa
    from daft import DataType

    @daft.cls
    class Detector:
        def __init__(self, weights: str, detections: int) -> None:
            self.network = load_network(weights, detections)

        def detect(self, uri: str, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
            import torch

            with torch.inference_mode():
                [output] = self.network([torch.from_numpy(image).permute(2, 0, 1) / 255])
            return rows(uri, output)

        detect = daft.method(return_dtype=DataType.list(DataType.from_arrow_type(pa.struct(schema()))))(detect)

    detector: Any = Detector(weights, detections)  # its methods take columns as well
    df = daft.from_glob_path(f"{images_dir}/*.jpg")
    df = df.with_column("image", df["path"].download().decode_image())
    df = df.select(detector.detect(df["path"], df["image"]).alias("found")).explode("found")
    df = df.select(df["found"].unnest())
    df.write_parquet(out)


# -------------------------------------------------------------------------------------------------------- Pillow


def pillow_only(images_dir: str, weights: str, out: str, *, detections: int) -> None:
    from concurrent.futures import ProcessPoolExecutor

    paths = sorted(Path(images_dir).glob("*.jpg"))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode_with_pillow, paths, chunksize=16))


def decode_with_pillow(path: Path) -> tuple[int, ...]:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).shape


PEERS: dict[str, Callable[..., float | None]] = {
    "torchvision_first": torchvision_first,
    "torchvision_tuned": torchvision_tuned,
    "ray_data": ray_data,
    "daft": daft_dataframe,
    "ray_data_null": ray_data_null,
    "pillow_only": pillow_only,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--images", required=True, help="folder of .jpg files")
    parser.add_argument("--weights", default="", help="model folder of raymask's")
    parser.add_argument("--out", default="", help="new file or folder; Ray Data and Daft add to what is there")
    parser.add_argument("--detections", type=int, default=100)
    args = parser.parse_args()
    first_result = PEERS[args.name](args.images, args.weights, args.out, detections=args.detections)
    record = {
        "images": len(list(Path(args.images).glob("*.jpg"))),
        "seconds": time.perf_counter() - START,
        "first_result_s": first_result and first_result - START,
        "detections": written(args.out),
    }
    print(json.dumps(record))


def written(out: str) -> int:
    """Rows of detections in what a peer wrote; 0 where it writes none."""
    if not out or not os.path.exists(out):
        return 0
    import pyarrow.dataset as ds

    table = ds.dataset(out)
    return int(table.count_rows()) if "label" in table.schema.names else 0


if __name__ == "__main__":
    main()
