-- The tables of raymask 1.0 in Athena and Hive, over the files.
-- Made by schemas/generate.py from schemas/spec.md. Put the URL of an output in the place of @OUT@:
--     sed 's|@OUT@|s3://bucket/masks|' schemas/athena.sql
-- Columns that came with your own input are in images too: add them by name and type.
-- Athena takes one statement at a time.

CREATE EXTERNAL TABLE images (
    `image_id` bigint COMMENT 'Key of the image, made of uri alone: the same in every output',
    `uri` string COMMENT 'Full name of the image in its input, unique in the table',
    `status` string COMMENT 'ok or failed',
    `error` string COMMENT 'Why the image failed, one of a closed list of kinds, or null if it did not',
    `error_detail` string COMMENT 'The same for people to read, null if error is',
    `height` int COMMENT 'Height in pixels after EXIF orientation, null if the image could not be decoded',
    `width` int COMMENT 'Width in pixels after EXIF orientation, null if height is',
    `format` string COMMENT 'Format of the file in lower case, such as jpeg, null if height is',
    `bytes` bigint COMMENT 'Size of the encoded image in bytes, null if it could not be fetched',
    `etag` string COMMENT 'What the store calls the version of the object that was read, null if it does not say',
    `instance_count` int COMMENT 'Number of rows of this image in instances, 0 if the image failed'
)
COMMENT 'One row for every image of the input, also for those that failed or show nothing'
STORED AS PARQUET
LOCATION '@OUT@/images/';

CREATE EXTERNAL TABLE instances (
    `image_id` bigint COMMENT 'image_id of its image',
    `uri` string COMMENT 'uri of its image',
    `instance` int COMMENT 'Number of the object in its image, by falling score: 0, 1, 2, ...',
    `category_id` int COMMENT 'What it is, as an id of the categories in the footer',
    `category` string COMMENT 'The name of that category',
    `score` float COMMENT 'How sure the model is, from 0 to 1',
    `x_min` float COMMENT 'Left edge of its box in pixels, from the left edge of the image',
    `y_min` float COMMENT 'Upper edge of its box in pixels, from the upper edge of the image',
    `x_max` float COMMENT 'Right edge of its box in pixels, from the left edge of the image',
    `y_max` float COMMENT 'Lower edge of its box in pixels, from the upper edge of the image',
    `area` bigint COMMENT 'Number of pixels inside its mask',
    `mask` struct<size:array<int>,counts:string> COMMENT 'Its pixels, as a compressed COCO RLE'
)
COMMENT 'One row for every object found, with the image_id of its image'
STORED AS PARQUET
LOCATION '@OUT@/instances/';
