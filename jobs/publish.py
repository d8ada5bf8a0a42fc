"""`raymask publish` as a Ray job:

ray job submit --working-dir . -- python jobs/publish.py --config jobs/publish.yaml --set out=s3://… --set format=…
"""

import sys

from raymask.jobs import run_job

if __name__ == "__main__":
    sys.exit(run_job("publish", __doc__))
