"""spec.checkpoint: where and how often training is saved."""

import re
from typing import Literal

from pydantic import Field

from everstep_operator.api.model import Model, Name, Whole
from everstep_operator.api.rules import Rule


class CheckpointEvery(Model):
    steps: Whole = Field(default=100, ge=1, le=10**9, description="Optimizer steps between two checkpoints.")


class CheckpointKeepEvery(Model):
    steps: Whole | None = Field(
        default=None, ge=1, le=10**9, description="The first checkpoint at or after each multiple of so many steps."
    )
    seconds: Whole | None = Field(
        default=None, ge=1, le=10**9, description="One checkpoint for each stretch of so many seconds."
    )


class CheckpointKeepBest(Model):
    metric: str = Field(min_length=1, max_length=256, description="Name of a metric that the script logs.")
    mode: Literal["min", "max"] = Field(default="min", description="Which values are better.")
    count: Whole = Field(default=1, ge=1, le=1_000, description="How many of the best stay.")


class CertificateRef(Model):
    name: Name = Field(description="Name of the object, in the run's namespace.")
    key: Name = Field(default="ca.crt", description="Key in it that holds the certificates, PEM.")


class CertificateAuthority(Model):
    config_map: CertificateRef | None = Field(default=None, description="A ConfigMap.")
    secret: CertificateRef | None = Field(default=None, description="A Secret.")

    RULES = (
        Rule(
            lambda c: (c.config_map is None) != (c.secret is None),
            "has(self.configMap) != has(self.secret)",
            "checkpoint.ca takes one source: configMap or secret",
        ),
    )


class Checkpoint(Model):
    uri: str = Field(
        max_length=1_024,
        description="Where checkpoints live: s3://bucket/prefix, gs://…, az://…, file:///absolute/path.",
    )
    every: CheckpointEvery = Field(default=CheckpointEvery(), description="How often a checkpoint is saved.")
    keep: Whole = Field(default=3, ge=1, le=1_000, description="Checkpoints kept; older ones are deleted.")
    keep_every: CheckpointKeepEvery | None = Field(
        default=None, description="Older checkpoints that stay all the same, by step and by time."
    )
    keep_best: CheckpointKeepBest | None = Field(
        default=None,
        description="Older checkpoints that stay all the same, by a metric. One is saved after each validation "
        "that logs it.",
    )
    resume: Literal["auto", "never"] = Field(
        default="auto",
        description="auto: start from the newest verified checkpoint; never: from the beginning, also after a failure.",
    )
    endpoint: str | None = Field(
        default=None,
        min_length=1,
        max_length=1_024,
        description="URL of an S3 server other than Amazon's, https://host:port.",
    )
    region: str | None = Field(default=None, min_length=1, max_length=64, description="Region of the S3 bucket.")
    credentials_secret: Name | None = Field(
        default=None,
        description="Secret whose keys are the variables of the store's own tools, such as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY. Without it: what trainer.env or workload identity give.",
    )
    ca: CertificateAuthority | None = Field(
        default=None, description="Certificates that the store is verified with, instead of the image's."
    )

    RULES = (
        Rule(
            lambda c: re.match("[^/]+://.", c.uri) is not None,
            "self.uri.matches('^[^/]+://.+')",
            "checkpoint.uri {uri} has no scheme: write s3://bucket/prefix or file:///absolute/path",
        ),
        Rule(
            lambda c: not c.uri.startswith("file://") or c.uri.startswith("file:///"),
            "!self.uri.startsWith('file://') || self.uri.startsWith('file:///')",
            "checkpoint.uri {uri} is not absolute: write file:///absolute/path, with three slashes",
        ),
        Rule(
            lambda c: re.match("(https?|hf)://", c.uri) is None,
            "!self.uri.matches('^(https?|hf)://')",
            "checkpoint.uri {uri} is no store for checkpoints: write s3://bucket/prefix, with checkpoint.endpoint "
            "for a server other than Amazon's, gs://bucket/prefix, az://container/prefix or file:///absolute/path",
        ),
        Rule(
            lambda c: not c.uri.startswith(("s3:///", "gs:///", "az:///")),
            "!self.uri.matches('^(s3|gs|az):///')",
            "checkpoint.uri {uri} names no bucket: write s3://bucket/prefix",
        ),
        Rule(
            lambda c: c.endpoint is None or c.uri.startswith("s3://"),
            "!has(self.endpoint) || self.uri.startsWith('s3://')",
            "checkpoint.endpoint is for s3:// only, and uri is {uri}: remove endpoint or change uri",
        ),
        Rule(
            lambda c: c.endpoint is None or c.endpoint.startswith(("http://", "https://")),
            "!has(self.endpoint) || self.endpoint.startsWith('http://') || self.endpoint.startsWith('https://')",
            "checkpoint.endpoint is no URL: write http://host:port or https://host:port",
        ),
        Rule(
            lambda c: c.region is None or c.uri.startswith("s3://"),
            "!has(self.region) || self.uri.startsWith('s3://')",
            "checkpoint.region is for s3:// only, and uri is {uri}: remove region or change uri",
        ),
        Rule(
            lambda c: c.credentials_secret is None or not c.uri.startswith("file://"),
            "!has(self.credentialsSecret) || !self.uri.startsWith('file://')",
            "checkpoint.credentialsSecret is for stores, and uri is {uri}: remove credentialsSecret or change uri",
        ),
        Rule(
            lambda c: c.ca is None or not c.uri.startswith("file://"),
            "!has(self.ca) || !self.uri.startsWith('file://')",
            "checkpoint.ca is for stores, and uri is {uri}: remove ca or change uri",
        ),
    )
