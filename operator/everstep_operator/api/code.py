"""spec.trainer.code: files for an image that does not hold them."""

import re
from typing import Self

from pydantic import Field, model_validator

from everstep_operator.api.model import Model, each_once
from everstep_operator.api.rules import Rule

#: Of all files together. The object that holds them, and kubectl's note of it, must stay below 256 KiB.
MAX_CHARACTERS = 100_000

_PART = "[A-Za-z0-9_-][-._A-Za-z0-9]*"
_ARCHIVE = r"^[^/]+://.+\.(tar|tar\.gz|tgz|zip)$"


class CodeFile(Model):
    path: str = Field(
        max_length=200,
        pattern=f"^{_PART}(/{_PART})*$",
        description="Where it lies in the folder, such as train.py or model/layers.py.",
    )
    content: str = Field(default="", max_length=MAX_CHARACTERS, description="Its text.")


class Code(Model):
    files: tuple[CodeFile, ...] = Field(
        default=(),
        max_length=64,
        description="Small files, written in the manifest itself.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["path"]},
    )
    archive: str | None = Field(
        default=None,
        max_length=1_024,
        description="A .tar.gz, .tar or .zip in a store that checkpoint credentials open, such as s3://bucket/code.tgz.",
    )

    RULES = (
        Rule(
            lambda c: bool(c.files) != (c.archive is not None),
            "(has(self.files) && self.files.size() > 0) != has(self.archive)",
            "trainer.code takes one source: files (small ones, in the manifest) or archive (a URI)",
        ),
        Rule(
            lambda c: sum(len(file.content) for file in c.files) <= MAX_CHARACTERS,
            f"!has(self.files) || self.files.map(f, has(f.content) ? f.content.size() : 0).sum() <= {MAX_CHARACTERS}",
            f"trainer.code.files has more than {MAX_CHARACTERS} characters in all: "
            "put the folder into an archive (tar czf code.tar.gz .), upload that, and name it in trainer.code.archive",
        ),
        Rule(
            lambda c: c.archive is None or re.match(_ARCHIVE, c.archive) is not None,
            f"!has(self.archive) || self.archive.matches(r'{_ARCHIVE}')",
            "trainer.code.archive {archive} is no URI of an archive: write s3://bucket/code.tar.gz; "
            ".tar.gz, .tgz, .tar and .zip are understood",
        ),
    )

    @model_validator(mode="after")
    def _paths_differ(self) -> Self:
        each_once("trainer.code.files", (file.path for file in self.files))
        return self
