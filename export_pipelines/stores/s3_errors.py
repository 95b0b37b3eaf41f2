"""What the errors of an S3 store and of the way to it mean to its user. Imports botocore, so import it late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from export_pipelines.errors import StoreError

FAILURES = (ClientError, BotoCoreError, HTTPError)
"""All that a call of a client, or reading the body of an answer, is known to raise."""

_RIGHTS = "s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload"
_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile)"
_SERVER = "the store is busy or has a fault of its own; run it again"

_CODES = {
    "NoSuchBucket": ("there is no such bucket", "create the bucket, or correct its name, endpoint or region"),
    "InvalidBucketName": ("the name of the bucket is not valid", "correct the name in the URL of the store"),
    "AccessDenied": ("access denied", f"give the user of these keys the rights {_RIGHTS}"),
    "AllAccessDisabled": ("access to the bucket is disabled", "ask who owns the bucket"),
    "403": ("access denied", f"{_KEYS}, and that their user has the rights {_RIGHTS}"),
    "SignatureDoesNotMatch": ("the secret key is wrong", _KEYS),
    "InvalidAccessKeyId": ("the access key is unknown", _KEYS),
    "InvalidToken": ("the session token is wrong", "get new credentials, AWS_SESSION_TOKEN included"),
    "ExpiredToken": ("the session token has expired", "get new credentials, AWS_SESSION_TOKEN included"),
    "TokenRefreshRequired": ("the session token has expired", "get new credentials, AWS_SESSION_TOKEN included"),
    "RequestTimeTooSkewed": ("the clock of this machine is wrong", "set the clock; both must agree to 15 minutes"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_DEFAULT_REGION, or the store's region"),
    "AuthorizationHeaderMalformed": ("the region is wrong", "set AWS_DEFAULT_REGION, or the store's region"),
    "301": ("the bucket is in another region", "set AWS_DEFAULT_REGION, or the store's region"),
    "InvalidObjectState": ("the object lies in cold storage", "restore it from cold storage first"),
    "NotImplemented": ("the store does not know this kind of request", "use one that knows conditional puts"),
    "BadDigest": ("the bytes were altered on their way", "run it again; if it stays so, check network and proxy"),
    "XAmzContentChecksumMismatch": ("the bytes were altered on their way", "run it again; check network and proxy"),
    "XAmzContentSHA256Mismatch": ("the bytes were altered on their way", "run it again; check network and proxy"),
    "QuotaExceeded": ("the store is full", "free some space, or raise the quota"),
    "InsufficientStorage": ("the store is full", "free some space, or raise the quota"),
    "XMinioStorageFull": ("the store is full", "free some space, or raise the quota"),
    "NoSuchUpload": ("the unfinished upload is gone", "run it again; see what aborts uploads so soon (a sweep?)"),
}
_TRANSIENT_CODES = {
    "BadDigest",
    "NoSuchUpload",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}

# The first that fits; a subclass stands before its base.
_KINDS: tuple[tuple[type[Exception], str, str, bool], ...] = (
    (boto.SSLError, "the TLS connection failed", "check the certificate, and AWS_CA_BUNDLE", False),
    (boto.EndpointConnectionError, "the endpoint does not answer", "check endpoint URL, network and server", True),
    (boto.ConnectTimeoutError, "the endpoint does not answer", "check endpoint URL, network and server", True),
    (boto.ProxyConnectionError, "the proxy does not answer", "check HTTPS_PROXY and NO_PROXY", True),
    (boto.HTTPClientError, "the connection broke or stalled", "check network and server, and run it again", True),
    (boto.IncompleteReadError, "the connection broke", "check network and server, and run it again", True),
    (HTTPError, "the connection broke or stalled", "check network and server, and run it again", True),
    (boto.NoCredentialsError, "there are no credentials", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", False),
    (boto.PartialCredentialsError, "credentials are incomplete", _KEYS, False),
    (boto.CredentialRetrievalError, "credentials could not be had", "log in again (aws sso login)", False),
    (boto.TokenRetrievalError, "credentials could not be had", "log in again (aws sso login)", False),
    (boto.ProfileNotFound, "there is no such profile", "check AWS_PROFILE", False),
)


def explain(error: Exception, action: str, place: str) -> StoreError:
    """A sentence of what could not be done to `place`, and a hint. Nothing of credentials or signatures is in it."""
    if isinstance(error, ClientError):
        return _of_answer(error, action, place)
    for kind, sentence, hint, transient in _KINDS:
        if isinstance(error, kind):
            return StoreError(f"cannot {action} '{place}': {sentence}", hint=hint, transient=transient)
    return StoreError(f"cannot {action} '{place}': {type(error).__name__}: {error}", hint="check the store's settings")


def code_of(error: Exception) -> str:
    """The code that the server gave, '' if the server gave no answer."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def status_of(error: Exception) -> int:
    """The HTTP status of the server's answer, 0 if there was none."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _of_answer(error: ClientError, action: str, place: str) -> StoreError:
    code, status = code_of(error), status_of(error)
    transient = code in _TRANSIENT_CODES or status in (429, 500, 502, 503, 504)
    unknown = str(error.response.get("Error", {}).get("Message", ""))[:200]
    sentence, hint = _CODES.get(code, (unknown or "the store refused it", _SERVER if transient else ""))
    return StoreError(f"cannot {action} '{place}': {sentence} ({code or status})", hint=hint, transient=transient)


def size_of(answer: Mapping[str, Any], place: str) -> int:
    """Bytes of the object that an answer is about.

    Raises:
        StoreError: the answer was cut within its head; botocore takes what is left of it for a whole one.
    """
    if not {"ContentLength", "ETag", "LastModified"} <= answer.keys():
        raise StoreError(f"the answer about '{place}' was cut short", hint="run it again", transient=True)
    return int(answer["ContentLength"])
