-- The tables of raymask 1.0 in DuckDB: copies in its own storage.
-- Made by schemas/generate.py from schemas/spec.md. Put the URL of an output in the place of @OUT@:
--     sed 's|@OUT@|s3://bucket/masks|' schemas/duckdb.sql
-- Columns that came with your own input are in images too: add them by name and type.
-- To query the files where they are, two views do:
--     CREATE VIEW images AS SELECT * FROM read_parquet('@OUT@/images/part-*.parquet');
--     CREATE VIEW instances AS SELECT * FROM read_parquet('@OUT@/instances/part-*.parquet');

CREATE TABLE images (
    image_id BIGINT NOT NULL,
    uri VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    error VARCHAR,
    error_detail VARCHAR,
    height INTEGER,
    width INTEGER,
    format VARCHAR,
    bytes BIGINT,
    etag VARCHAR,
    instance_count INTEGER NOT NULL
);
COMMENT ON TABLE images IS 'One row for every image of the input, also for those that failed or show nothing';
COMMENT ON COLUMN images.image_id IS 'Key of the image, made of uri alone: the same in every output';
COMMENT ON COLUMN images.uri IS 'Full name of the image in its input, unique in the table';
COMMENT ON COLUMN images.status IS 'ok or failed';
COMMENT ON COLUMN images.error IS 'Why the image failed, one of a closed list of kinds, or null if it did not';
COMMENT ON COLUMN images.error_detail IS 'The same for people to read, null if error is';
COMMENT ON COLUMN images.height IS 'Height in pixels after EXIF orientation, null if the image could not be decoded';
COMMENT ON COLUMN images.width IS 'Width in pixels after EXIF orientation, null if height is';
COMMENT ON COLUMN images.format IS 'Format of the file in lower case, such as jpeg, null if height is';
COMMENT ON COLUMN images.bytes IS 'Size of the encoded image in bytes, null if it could not be fetched';
COMMENT ON COLUMN images.etag IS 'What the store calls the version of the object that was read, null if it does not say';
COMMENT ON COLUMN images.instance_count IS 'Number of rows of this image in instances, 0 if the image failed';
INSERT INTO images BY NAME
SELECT
    image_id,
    uri,
    status,
    error,
    error_detail,
    height,
    width,
    format,
    bytes,
    etag,
    instance_count
FROM read_parquet('@OUT@/images/part-*.parquet');

CREATE TABLE instances (
    image_id BIGINT NOT NULL,
    uri VARCHAR NOT NULL,
    instance INTEGER NOT NULL,
    category_id INTEGER NOT NULL,
    category VARCHAR NOT NULL,
    score FLOAT NOT NULL,
    x_min FLOAT NOT NULL,
    y_min FLOAT NOT NULL,
    x_max FLOAT NOT NULL,
    y_max FLOAT NOT NULL,
    area BIGINT NOT NULL,
    mask STRUCT(size INTEGER[], counts VARCHAR) NOT NULL
);
COMMENT ON TABLE instances IS 'One row for every object found, with the image_id of its image';
COMMENT ON COLUMN instances.image_id IS 'image_id of its image';
COMMENT ON COLUMN instances.uri IS 'uri of its image';
COMMENT ON COLUMN instances.instance IS 'Number of the object in its image, by falling score: 0, 1, 2, ...';
COMMENT ON COLUMN instances.category_id IS 'What it is, as an id of the categories in the footer';
COMMENT ON COLUMN instances.category IS 'The name of that category';
COMMENT ON COLUMN instances.score IS 'How sure the model is, from 0 to 1';
COMMENT ON COLUMN instances.x_min IS 'Left edge of its box in pixels, from the left edge of the image';
COMMENT ON COLUMN instances.y_min IS 'Upper edge of its box in pixels, from the upper edge of the image';
COMMENT ON COLUMN instances.x_max IS 'Right edge of its box in pixels, from the left edge of the image';
COMMENT ON COLUMN instances.y_max IS 'Lower edge of its box in pixels, from the upper edge of the image';
COMMENT ON COLUMN instances.area IS 'Number of pixels inside its mask';
COMMENT ON COLUMN instances.mask IS 'Its pixels, as a compressed COCO RLE';
INSERT INTO instances BY NAME
SELECT
    image_id,
    uri,
    instance,
    category_id,
    category,
    score,
    x_min,
    y_min,
    x_max,
    y_max,
    area,
    mask
FROM read_parquet('@OUT@/instances/part-*.parquet');
