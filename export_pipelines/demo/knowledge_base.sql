-- A knowledge base as a crawler keeps it: every change of a thing is a new row of the same base_id; the newest row
-- (greatest updated_at) is the thing as it is now. Things refer to each other by base_id, so there are no foreign keys.
CREATE SCHEMA IF NOT EXISTS knowledge_base;

CREATE TYPE knowledge_base.run_status AS ENUM ('running', 'succeeded', 'partly failed', 'failed');

CREATE TABLE knowledge_base.agency (
    id          uuid PRIMARY KEY,
    base_id     uuid NOT NULL,
    name        text NOT NULL,
    description text,
    homepage    text,
    is_deleted  boolean NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);

CREATE TABLE knowledge_base.source (
    id             uuid PRIMARY KEY,
    base_id        uuid NOT NULL,
    agency_base_id uuid NOT NULL,
    name           text NOT NULL,
    url            text NOT NULL,
    kind           text NOT NULL,
    settings       jsonb NOT NULL,
    schedule       text,
    is_deleted     boolean NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL
);

CREATE TABLE knowledge_base.source_file (
    id                 text PRIMARY KEY,
    base_id            text NOT NULL,
    source_base_id     uuid NOT NULL,
    file_name          text NOT NULL,
    storage_path       text NOT NULL,
    sha256             bytea NOT NULL,
    mime_type          text NOT NULL,
    size_bytes         bigint NOT NULL,
    extraction_seconds numeric(8, 3),
    extracted_text     text,
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL
);

CREATE TABLE knowledge_base.source_run_page (
    id             uuid PRIMARY KEY,
    base_id        uuid NOT NULL,
    source_base_id uuid NOT NULL,
    run_id         uuid NOT NULL,
    url            text NOT NULL,
    http_status    smallint NOT NULL,
    title          text,
    cleaned_text   text,
    error_message  text,
    fetched_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL
);

-- The crawler writes the times of a run without a zone, in UTC.
CREATE TABLE knowledge_base.source_run_report (
    id             uuid PRIMARY KEY,
    base_id        uuid NOT NULL,
    source_base_id uuid NOT NULL,
    status         knowledge_base.run_status NOT NULL,
    pages_found    integer NOT NULL,
    pages_changed  integer NOT NULL,
    files_found    integer NOT NULL,
    bytes_fetched  bigint NOT NULL,
    errors         text[] NOT NULL,
    duration       interval,
    started_at     timestamp NOT NULL,
    finished_at    timestamp,
    updated_at     timestamptz NOT NULL
);

-- Unique, so that the newest version of a thing is one row and not a matter of luck.
CREATE UNIQUE INDEX agency_version ON knowledge_base.agency (base_id, updated_at);
CREATE UNIQUE INDEX source_version ON knowledge_base.source (base_id, updated_at);
CREATE UNIQUE INDEX source_file_version ON knowledge_base.source_file (base_id, updated_at);
CREATE UNIQUE INDEX source_run_page_version ON knowledge_base.source_run_page (base_id, updated_at);
CREATE UNIQUE INDEX source_run_report_version ON knowledge_base.source_run_report (base_id, updated_at);
