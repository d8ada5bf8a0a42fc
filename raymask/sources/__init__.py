"""Where the images are: folders, globs, manifests, COCO files, Parquet tables of images, tar shards, as one stream.

Every source becomes Arrow batches of (uri, size, etag, container, container_column, position) and the user's own
columns. Of a store no more than a page of a listing is held, so a bucket of a hundred million keys costs no more memory
than one of a thousand; of a local file system the names in one folder. Whatever a store or a parser raises becomes a
ConfigError that names the source.

`opening` decides what a source is; `listings`, `shards`, `annotations`, `manifests` and `parquet` read one kind each.
"""

from raymask.sources.opening import advice, open_source
from raymask.sources.stream import Entry, Source

__all__ = ["Entry", "Source", "advice", "open_source"]
