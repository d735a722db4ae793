"""Checkpoints in S3 and what speaks like it, Google Cloud Storage and Azure, by obstore.

Credentials, region and endpoint come from the variables that the providers' own tools read: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP, AWS_CA_BUNDLE, HTTPS_PROXY, NO_PROXY, GOOGLE_…,
AZURE_… . Buckets are addressed by path unless AWS_VIRTUAL_HOSTED_STYLE_REQUEST says otherwise.

Each request is signed over the hash of its body, so the server itself refuses what was damaged on the way to it.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from everstep.checkpoint.storage import CHUNK_BYTES, Body, Entry
from everstep.errors import ConfigurationError, StorageError

#: Up to this size an object is put in one request; above it in parts of this size, so that S3's 10,000 parts suffice.
_SINGLE_PUT_BYTES = 16 * 1024 * 1024
_MAX_PARTS = 9000


class ObjectStorage:
    """obstore's threads start with the first request, not before: a process that only imports this may still fork."""

    def __init__(self, uri: str, environ: Mapping[str, str]) -> None:
        self.uri = uri.rstrip("/")
        self._environ = environ
        self._scheme = urlsplit(uri).scheme
        self._bucket = urlsplit(uri).netloc
        self._made: Any = None
        if not self._bucket:
            raise ConfigurationError(f"checkpoint uri {uri!r} names no bucket; write {self._scheme}://bucket/prefix")

    @property
    def _store(self) -> Any:
        if self._made is None:
            import obstore.store

            client: dict[str, Any] = {"connect_timeout": timedelta(seconds=4), "timeout": timedelta(seconds=60)}
            if self._environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes"):
                client["allow_http"] = True
            bundle = self._environ.get("AWS_CA_BUNDLE") or self._environ.get("SSL_CERT_FILE")
            if bundle:
                try:
                    client["root_certificate"] = Path(bundle).read_bytes()
                except OSError as error:
                    raise ConfigurationError(
                        f"the CA bundle {bundle} (AWS_CA_BUNDLE or SSL_CERT_FILE) cannot be read: {error.strerror}"
                    ) from None
            config: dict[str, Any] = {}
            if self._scheme in ("s3", "s3a"):
                config = {
                    name.lower().removeprefix("aws_"): self._environ[name]
                    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")
                    if self._environ.get(name)
                }
                if endpoint := self._endpoint():
                    config["endpoint"] = endpoint
            try:
                from_url: Any = obstore.store.from_url  # its type depends on the scheme
                self._made = from_url(
                    self.uri,
                    client_options=client,
                    retry_config={
                        "max_retries": 2,
                        "retry_timeout": timedelta(seconds=12),
                        "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=2)},
                    },
                    **config,
                )
            except Exception as error:
                raise ConfigurationError(f"checkpoint uri {self.uri!r}: {_first_line(error)}") from error
        return self._made

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        import obstore

        with self._errors("write", key):
            if create_only or body.size <= _SINGLE_PUT_BYTES:
                data = b"".join(body.pieces())
                mode: Any = "create" if create_only else "overwrite"
                obstore.put(self._store, key, data, mode=mode, use_multipart=False)
            else:
                part = max(_SINGLE_PUT_BYTES, -(-body.size // _MAX_PARTS))
                obstore.put(self._store, key, iter(body.pieces()), chunk_size=part, max_concurrency=4)

    def get(self, key: str) -> Iterator[memoryview | bytes]:
        import obstore

        with self._errors("read", key):
            stream = iter(obstore.get(self._store, key).stream(min_chunk_size=CHUNK_BYTES))
        while True:
            with self._errors("read", key):
                piece = next(stream, None)
            if piece is None:
                return
            yield memoryview(piece)

    def list(self, prefix: str) -> list[Entry]:
        import obstore

        with self._errors("list", prefix):
            return [Entry(found["path"], found["size"]) for page in obstore.list(self._store, prefix) for found in page]

    def delete(self, keys: Iterable[str]) -> None:
        import obstore

        for key in keys:
            with self._errors("delete", key), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    def _endpoint(self) -> str | None:
        return self._environ.get("AWS_ENDPOINT_URL_S3") or self._environ.get("AWS_ENDPOINT_URL") or None

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        from obstore import exceptions

        where = f"{self.uri} at {self._endpoint() or 'the default endpoint'}"
        try:
            yield
        except exceptions.AlreadyExistsError as error:
            raise FileExistsError(key) from error
        except (exceptions.PreconditionError, exceptions.NotModifiedError) as error:
            raise FileExistsError(key) from error
        except FileNotFoundError as error:
            if verb == "read" and "NoSuchBucket" not in str(error):
                raise
            raise StorageError(self._no_bucket(where)) from error
        except exceptions.NotSupportedError as error:
            raise StorageError(f"cannot {verb} {key} in {where}: the store does not support it") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise StorageError(
                f"cannot {verb} {key} in {where}: access denied. Check the credentials (AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY, or the secret of spec.checkpoint) and what they may do in bucket "
                f"{self._bucket!r}"
            ) from error
        except (exceptions.BaseError, OSError) as error:
            text = str(error)
            if "NoSuchBucket" in text:
                raise StorageError(self._no_bucket(where)) from error
            if "InvalidAccessKeyId" in text or "SignatureDoesNotMatch" in text or "403" in text:
                raise StorageError(
                    f"cannot {verb} {key} in {where}: wrong credentials. Check AWS_ACCESS_KEY_ID and "
                    f"AWS_SECRET_ACCESS_KEY, or the secret of spec.checkpoint"
                ) from error
            if "QuotaExceeded" in text or "InsufficientStorage" in text or "507" in text:
                raise StorageError(f"cannot {verb} {key} in {where}: no space left there") from error
            raise StorageError(
                f"cannot {verb} {key} in {where}: {_first_line(error)}. Check that the endpoint is right and can be "
                f"reached from here"
            ) from error

    def _no_bucket(self, where: str) -> str:
        return f"there is no bucket {self._bucket!r} for checkpoints in {where}: create it or correct the uri"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".:")
