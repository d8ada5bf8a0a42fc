"""`raymask segment` as a Ray job:

ray job submit --working-dir . -- python jobs/segment.py --config jobs/segment.yaml --set source=s3://… --set out=s3://…
"""

import sys

from raymask.jobs import run_job

if __name__ == "__main__":
    sys.exit(run_job("segment", __doc__))
