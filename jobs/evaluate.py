"""`raymask evaluate` as a Ray job:

ray job submit --working-dir . -- python jobs/evaluate.py --config jobs/evaluate.yaml --set out=s3://… --set annotations=s3://…
"""

import sys

from raymask.jobs import run_job

if __name__ == "__main__":
    sys.exit(run_job("evaluate", __doc__))
