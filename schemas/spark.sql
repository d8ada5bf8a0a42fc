-- The tables of raymask 1.0 in Spark SQL, over the files.
-- Made by schemas/generate.py from schemas/spec.md. Put the URL of an output in the place of @OUT@:
--     sed 's|@OUT@|s3://bucket/masks|' schemas/spark.sql
-- Columns that came with your own input are in images too: add them by name and type.

CREATE TABLE images (
    `image_id` BIGINT NOT NULL COMMENT 'Key of the image, made of uri alone: the same in every output',
    `uri` STRING NOT NULL COMMENT 'Full name of the image in its input, unique in the table',
    `status` STRING NOT NULL COMMENT 'ok or failed',
    `error` STRING COMMENT 'Why the image failed, one of a closed list of kinds, or null if it did not',
    `error_detail` STRING COMMENT 'The same for people to read, null if error is',
    `height` INT COMMENT 'Height in pixels after EXIF orientation, null if the image could not be decoded',
    `width` INT COMMENT 'Width in pixels after EXIF orientation, null if height is',
    `format` STRING COMMENT 'Format of the file in lower case, such as jpeg, null if height is',
    `bytes` BIGINT COMMENT 'Size of the encoded image in bytes, null if it could not be fetched',
    `etag` STRING COMMENT 'What the store calls the version of the object that was read, null if it does not say',
    `instance_count` INT NOT NULL COMMENT 'Number of rows of this image in instances, 0 if the image failed'
)
USING parquet
LOCATION '@OUT@/images'
COMMENT 'One row for every image of the input, also for those that failed or show nothing';

CREATE TABLE instances (
    `image_id` BIGINT NOT NULL COMMENT 'image_id of its image',
    `uri` STRING NOT NULL COMMENT 'uri of its image',
    `instance` INT NOT NULL COMMENT 'Number of the object in its image, by falling score: 0, 1, 2, ...',
    `category_id` INT NOT NULL COMMENT 'What it is, as an id of the categories in the footer',
    `category` STRING NOT NULL COMMENT 'The name of that category',
    `score` FLOAT NOT NULL COMMENT 'How sure the model is, from 0 to 1',
    `x_min` FLOAT NOT NULL COMMENT 'Left edge of its box in pixels, from the left edge of the image',
    `y_min` FLOAT NOT NULL COMMENT 'Upper edge of its box in pixels, from the upper edge of the image',
    `x_max` FLOAT NOT NULL COMMENT 'Right edge of its box in pixels, from the left edge of the image',
    `y_max` FLOAT NOT NULL COMMENT 'Lower edge of its box in pixels, from the upper edge of the image',
    `area` BIGINT NOT NULL COMMENT 'Number of pixels inside its mask',
    `mask` STRUCT<size: ARRAY<INT>, counts: STRING> NOT NULL COMMENT 'Its pixels, as a compressed COCO RLE'
)
USING parquet
LOCATION '@OUT@/instances'
COMMENT 'One row for every object found, with the image_id of its image';
