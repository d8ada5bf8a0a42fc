"""`raymask train` as a Ray job:

ray job submit --working-dir . -- python jobs/train.py --config jobs/train.yaml --set data=s3://… --set out=s3://…
"""

import sys

from raymask.jobs import run_job

if __name__ == "__main__":
    sys.exit(run_job("train", __doc__))
