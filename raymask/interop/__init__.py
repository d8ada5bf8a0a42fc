"""Ways out of raymask's tables and into them: COCO, LabelMe, YOLO, GeoJSON, PNG and CSV. See `docs/formats.md`.

`exporting` and `importing` are where to begin; each format has a module that writes it, or reads it, or both.
"""
