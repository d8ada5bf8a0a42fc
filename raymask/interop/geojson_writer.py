"""GeoJSON: one FeatureCollection an image, a feature an object, in pixels of the image."""

from __future__ import annotations

import json
from typing import Any

from raymask.interop.outlines import Polygon, Ring, outlines_of
from raymask.interop.selection import Instance, Picture


def geojson_file(picture: Picture) -> bytes:
    """The features of one image. Coordinates are pixels, y downward from the top left corner: exact outlines."""
    height, width = picture.size_hw
    record = {
        "type": "FeatureCollection",
        "uri": picture.uri,
        "height": height,
        "width": width,
        "features": [_feature(*each) for each in zip(picture.instances, outlines_of(picture), strict=True)],
    }
    return (json.dumps(record) + "\n").encode()


def _feature(instance: Instance, parts: list[Polygon]) -> dict[str, Any]:
    coordinates = [[_closed(ring) for ring in rings] for rings in parts]
    return {
        "type": "Feature",
        "bbox": list(instance.box_xyxy),
        "properties": {
            "instance": instance.place,
            "category_id": instance.category_id,
            "category": instance.category,
            "score": instance.score,
            "area": instance.area,
        },
        "geometry": {"type": "MultiPolygon", "coordinates": coordinates} if parts else None,
    }


def _closed(ring: Ring) -> Ring:
    return [*ring, ring[0]]
