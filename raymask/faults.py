"""What the errors of stores and disks mean: worth another try, refused, full. They come from a dozen libraries."""

from __future__ import annotations

import errno

_FINAL_ERRNOS = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.ELOOP,
        errno.ENOSPC,
        errno.EROFS,
        errno.EDQUOT,
        errno.EFBIG,
        errno.ENOSYS,
        errno.EMSGSIZE,
        getattr(errno, "EREMCHG", errno.EINVAL),  # what s3fs makes of a bucket in another region
    }
)
_NETWORK_MODULES = ("aiobotocore", "aiohttp", "botocore", "http", "requests", "urllib3", "google", "azure", "gcsfs")
_CREDENTIAL_ERRORS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
    }
)
# Errors of the network libraries that another attempt cannot mend: no credentials, an impossible request.
_FINAL_NAMES = (_CREDENTIAL_ERRORS - {"CredentialRetrievalError"}) | {
    "ParamValidationError",
    "ProfileNotFound",
    "InvalidURL",
}
# What S3 says of the credentials themselves; of some of it s3fs makes an invalid argument.
_BAD_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_UNKNOWN_TO_STORE = "NotImplemented"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BUSY_STATUSES = frozenset({408, 425, 429})


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: overload, timeouts, broken connections; not absence or refusal."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, FileNotFoundError | PermissionError) or _is_of_address(error):
        return False
    if type(error).__module__.split(".")[0] in _NETWORK_MODULES:
        status = _http_status(error)
        if status is not None:
            return status >= 500 or status in _BUSY_STATUSES
        return type(error).__name__ not in _FINAL_NAMES
    if is_unknown_request(error):
        return False
    # Without a number it is no error of the system but a library's word about the data.
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _FINAL_ERRNOS


def is_refusal(error: BaseException) -> bool:
    """Whether the store refuses these credentials, or there are none to show it, or nobody may ask at that address."""
    return (
        isinstance(error, PermissionError)
        or _is_of_address(error)
        or _http_status(error) in (401, 403)
        or is_about_credentials(error)
    )


def is_about_credentials(error: BaseException) -> bool:
    """Whether the credentials themselves are missing, wrong or expired, so that no other request will fare better."""
    return type(error).__name__ in _CREDENTIAL_ERRORS or s3_code(error) in _BAD_CREDENTIALS


def is_absence(error: BaseException) -> bool:
    """Whether a web server says that there is nothing, or nothing any more."""
    return _http_status(error) in (404, 410)


def is_full(error: BaseException) -> bool:
    """Whether there is no room left to write to."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def is_unknown_request(error: BaseException) -> bool:
    """Whether the store does not know this kind of request."""
    return s3_code(error) == _UNKNOWN_TO_STORE


def is_beyond_end(error: BaseException) -> bool:
    """Whether the error says that an object has no byte in the range asked for."""
    return _http_status(error) == 416 or s3_code(error) == "InvalidRange"


def _is_of_address(error: BaseException) -> bool:
    """Whether `web` did not let aiohttp connect."""
    return isinstance(getattr(error, "os_error", None), PermissionError)


def _http_status(error: BaseException) -> int | None:
    values = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((value for value in values if isinstance(value, int)), None)


def s3_code(error: BaseException) -> str | None:
    # s3fs turns S3's codes into errors of Python's own, and keeps the original as their cause.
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
