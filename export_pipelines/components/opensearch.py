"""The Dagster resource of an OpenSearch, as resources/ describes it."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import Field, field_validator

from export_pipelines.components.resources import FromEnvironment, ResourceSpec, Value, no_password, resolved
from export_pipelines.sources.opensearch import OpenSearchSource


class OpenSearchSpec(ResourceSpec):
    """An OpenSearch whose indexes are data sets."""

    url: Value
    """`https://host:9200`, as a rule `{env: …}`."""
    user: Value | None = None
    """Name of the account; nobody when absent."""
    password: FromEnvironment | None = None
    """Its password."""
    verify_certs: bool = True
    """Whether the server's certificate must be valid."""
    ca_file: str | None = None
    """File of the certificate authority; the system's when absent."""
    timeout_seconds: float = Field(default=60, gt=0)
    """How long one answer may take."""
    optional: bool = False
    """Whether a machine may lack it: where its variable is not set, `check` passes over it and its data sets."""

    _check_url = field_validator("url")(no_password)

    def resource(self) -> OpenSearchResource:
        return OpenSearchResource(
            url=resolved(self.url),
            user=resolved(self.user) if self.user is not None else "",
            password=resolved(self.password) if self.password is not None else "",
            **self.model_dump(include={"verify_certs", "ca_file", "timeout_seconds", "optional"}),
        )


class OpenSearchResource(dg.ConfigurableResource[Any]):
    """A connection to an OpenSearch."""

    url: str
    user: str = ""
    password: str = ""
    verify_certs: bool = True
    ca_file: str | None = None
    timeout_seconds: float = 60
    optional: bool = False

    def open(self) -> OpenSearchSource:
        """The source; it connects when it is used."""
        return OpenSearchSource(
            self.url,
            self.user,
            self.password,
            verify_certs=self.verify_certs,
            ca_file=self.ca_file,
            timeout=self.timeout_seconds,
        )
