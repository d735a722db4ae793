"""Checkpoints in S3 and what speaks like it, Google Cloud Storage and Azure, by obstore.

Credentials, region and endpoint come from the variables that the providers' own tools read: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP, AWS_CA_BUNDLE, HTTPS_PROXY, NO_PROXY, GOOGLE_…,
AZURE_… . Buckets are addressed by path unless AWS_VIRTUAL_HOSTED_STYLE_REQUEST says otherwise.

Each request is signed over the hash of its body, so the server itself refuses what was damaged on the way to it.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from everstep.checkpoint.storage import CHUNK_BYTES, Body, Entry
from everstep.errors import ConfigurationError, StorageError, StorageRefusedError

#: Up to this size an object is put in one request; above it in parts of this size, so that S3's 10,000 parts suffice.
_SINGLE_PUT_BYTES = 16 * 1024 * 1024
_MAX_PARTS = 9000
#: Where the machine itself is asked for credentials, of AWS, Google and Azure: nothing else gives any.
_METADATA = re.compile(r"https?://[^/\s]+/(latest/(api/token|meta-data/)|computeMetadata/|metadata/identity/)")
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "s3a": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT_KEY",
}


class ObjectStorage:
    """obstore's threads start with the first request, not before: a process that only imports this may still fork."""

    def __init__(self, uri: str, environ: Mapping[str, str]) -> None:
        self.uri = uri.rstrip("/")
        self._environ = environ
        self._scheme = urlsplit(uri).scheme
        self._bucket = urlsplit(uri).netloc
        self._made: dict[bool, Any] = {}
        if not self._bucket:
            raise ConfigurationError(f"checkpoint uri {uri!r} names no bucket; write {self._scheme}://bucket/prefix")

    def _store(self, *, data: bool = False) -> Any:
        """The client for data, which may take its time while it moves, or that for small requests, which may not."""
        if data not in self._made:
            import obstore.store

            patience = {"read_timeout": 60, "timeout": 24 * 3600} if data else {"timeout": 8}
            client: dict[str, Any] = {name: timedelta(seconds=seconds) for name, seconds in patience.items()}
            client["connect_timeout"] = timedelta(seconds=4)
            allowed = self._environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
            if allowed or (self._endpoint() or "").startswith("http://"):
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
            backoff = {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=2)}
            from_url: Any = obstore.store.from_url  # its type depends on the scheme
            try:
                self._made[data] = from_url(
                    self.uri,
                    client_options=client,
                    retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=12), "backoff": backoff},
                    **config,
                )
            except Exception as error:
                raise ConfigurationError(f"checkpoint uri {self.uri!r}: {_parse(str(error))[2]}") from error
        return self._made[data]

    def put(self, key: str, body: Body, *, create_only: bool = False) -> None:
        import obstore

        with self._errors("write", key):
            if create_only or body.size <= _SINGLE_PUT_BYTES:
                data = b"".join(body.pieces())
                mode: Any = "create" if create_only else "overwrite"
                obstore.put(self._store(data=not create_only), key, data, mode=mode, use_multipart=False)
            else:
                part = max(_SINGLE_PUT_BYTES, -(-body.size // _MAX_PARTS))
                obstore.put(self._store(data=True), key, iter(body.pieces()), chunk_size=part, max_concurrency=4)

    def get(self, key: str) -> Iterator[memoryview | bytes]:
        import obstore

        with self._errors("read", key):
            stream = iter(obstore.get(self._store(data=True), key).stream(min_chunk_size=CHUNK_BYTES))
        while True:
            with self._errors("read", key):
                piece = next(stream, None)
            if piece is None:
                return
            yield memoryview(piece)

    def list(self, prefix: str) -> list[Entry]:
        import obstore

        with self._errors("list", prefix):
            return [
                Entry(found["path"], found["size"]) for page in obstore.list(self._store(), prefix) for found in page
            ]

    def delete(self, keys: Iterable[str]) -> None:
        import obstore

        for key in keys:
            with self._errors("delete", key), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store(), key)

    def _endpoint(self) -> str | None:
        return self._environ.get("AWS_ENDPOINT_URL_S3") or self._environ.get("AWS_ENDPOINT_URL") or None

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        from obstore import exceptions

        try:
            yield
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise FileExistsError(key) from error
        except (exceptions.BaseError, OSError) as error:
            status, code, reason = _parse(str(error))
            if isinstance(error, FileNotFoundError) and verb == "read" and code != "NoSuchBucket":
                raise
            if _METADATA.search(str(error)) is not None:
                # Who answered has none. Who is not there yet may come: a new node's does after some seconds.
                kind = StorageRefusedError if 400 <= status < 500 else StorageError
                raise kind(self._no_credentials(reason)) from None  # its words are a page of Rust, of another place
            problem = self._explain(status, code, reason)
            where = f"{self.uri} at {self._endpoint() or 'the default endpoint'}"
            refused = status in (401, 403) or code == "NoSuchBucket"
            kind = StorageRefusedError if refused else StorageError
            raise kind(f"cannot {verb} {key} in {where}: {problem}") from error

    def _no_credentials(self, reason: str) -> str:
        variables = _VARIABLES.get(self._scheme, "AZURE_STORAGE_ACCOUNT_KEY")
        return (
            f"no credentials for {self.uri}: set {variables} (in Kubernetes by the Secret that "
            "spec.checkpoint.credentialsSecret names), or let the pod's service account (spec.trainer."
            f"serviceAccountName) into {self._bucket!r}. This machine has none to give, either: {reason}"
        )

    def _explain(self, status: int, code: str, reason: str) -> str:
        answer = f"it answers {status} {code}".rstrip()
        if code == "NoSuchBucket":
            return f"there is no bucket {self._bucket!r}; create it or correct the uri"
        if status in (401, 403):
            return (
                f"access denied ({answer}). Check the credentials (for s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                f"or the Secret that spec.checkpoint.credentialsSecret names) and what they may do in bucket "
                f"{self._bucket!r}"
            )
        if status == 507 or "Quota" in code or "StorageFull" in code:
            return f"no space left there ({answer}): free some or lower spec.checkpoint.keep"
        if status == 501:
            return f"the store cannot do this ({answer}); conditional writes (If-None-Match) are needed"
        if status == 404:
            return f"{answer}. Is this the endpoint of an object store, and the bucket there?"
        if status >= 500:
            return f"{answer}; the store has troubles of its own"
        if status:
            return answer
        return (
            f"{reason}. Check endpoint and region (AWS_ENDPOINT_URL, AWS_REGION), and that it can be reached from here"
        )


def _parse(text: str) -> tuple[int, str, str]:
    """Of an error's text: HTTP status or 0, the store's code for it or "", and the last thing it says."""
    line = text.split("Debug source:")[0].strip().replace("\n", " ")
    status = re.search(r"status code: (\d{3})", line)
    code = re.search(r"<Code>(\w+)</Code>", line)
    reason = line.rsplit(" - ", 1)[-1][:200].rstrip(".: ") or "no reason given"
    return int(status[1]) if status else 0, code[1] if code else "", reason
