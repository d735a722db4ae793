"""spec.checkpoint: where and how often training is saved."""

import re
from typing import Literal

from pydantic import Field

from everstep_operator.api.model import Model, Whole
from everstep_operator.api.rules import Rule


class CheckpointEvery(Model):
    steps: Whole = Field(default=100, ge=1, le=10**9, description="Optimizer steps between two checkpoints.")


class Checkpoint(Model):
    uri: str = Field(
        max_length=1_024,
        description="Where checkpoints live: s3://bucket/prefix, gs://…, az://…, file:///absolute/path.",
    )
    every: CheckpointEvery = Field(default=CheckpointEvery(), description="How often a checkpoint is saved.")
    keep: Whole = Field(default=3, ge=1, le=1_000, description="Checkpoints kept; older ones are deleted.")
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
    )
