"""Exit codes of every command."""

DONE = 0
FAILED = 1  # wrong usage or environment
TOO_MANY_FAILED = 2  # done, but more images failed than --max-failed allows
INTERRUPTED = 130  # resumable
