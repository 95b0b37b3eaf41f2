"""Exports on demand: requests, who wants them, tokens, notices, downloads, and the audit log."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    _requests()
    _people()
    _audit()


def _requests() -> None:
    op.execute("""
        CREATE TABLE request (
          id text PRIMARY KEY,
          number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
          environment text NOT NULL,
          dataset text NOT NULL,
          query jsonb NOT NULL,
          query_sha256 text NOT NULL,
          data_version text NOT NULL,
          summary text NOT NULL,
          state text NOT NULL DEFAULT 'pending'
            CHECK (state IN ('pending', 'processing', 'succeeded', 'failed', 'cancelled')),
          created_by text NOT NULL,
          origin text NOT NULL,
          turn bigint NOT NULL DEFAULT 0,
          estimate bigint,
          rows bigint NOT NULL DEFAULT 0,
          bytes bigint NOT NULL DEFAULT 0,
          attempts integer NOT NULL DEFAULT 0,
          run_id text,
          error text,
          hint text,
          store_url text,
          file jsonb,
          created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          submitted_at timestamptz,
          started_at timestamptz,
          finished_at timestamptz,
          beat_at timestamptz,
          cancel_at timestamptz,
          expires_at timestamptz,
          expired_at timestamptz,
          CHECK (file IS NOT NULL OR state <> 'succeeded'))
    """)
    # Of one question to one version of the data there is never more than one request that waits or is at work.
    op.execute(
        "CREATE UNIQUE INDEX request_live ON request (query_sha256, data_version) "
        "WHERE state IN ('pending', 'processing')"
    )
    op.execute("CREATE INDEX ON request (query_sha256, data_version)")
    op.execute("CREATE INDEX ON request (state, turn, number) WHERE state IN ('pending', 'processing')")
    op.execute("CREATE INDEX ON request (expires_at) WHERE state = 'succeeded' AND expired_at IS NULL")
    op.execute("CREATE INDEX ON request (run_id)")
    op.execute("""
        CREATE TABLE subscription (
          request_id text NOT NULL REFERENCES request ON DELETE CASCADE,
          username text NOT NULL,
          email text,
          webhook text,
          created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          cancelled_at timestamptz,
          PRIMARY KEY (request_id, username))
    """)
    op.execute("CREATE INDEX ON subscription (username, request_id)")
    op.execute("""
        CREATE TABLE download (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          request_id text NOT NULL REFERENCES request ON DELETE CASCADE,
          username text NOT NULL,
          address text,
          bytes bigint NOT NULL DEFAULT 0,
          started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          beat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          finished_at timestamptz)
    """)
    op.execute("CREATE INDEX ON download (request_id)")
    op.execute("""
        CREATE TABLE delivery (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          request_id text NOT NULL REFERENCES request ON DELETE CASCADE,
          username text NOT NULL,
          kind text NOT NULL CHECK (kind IN ('mail', 'webhook')),
          event text NOT NULL,
          target text NOT NULL,
          state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'given up')),
          attempts integer NOT NULL DEFAULT 0,
          next_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          error text,
          created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          delivered_at timestamptz,
          UNIQUE (request_id, username, kind, event))
    """)
    op.execute("CREATE INDEX ON delivery (next_at) WHERE state = 'waiting'")


def _people() -> None:
    op.execute("""
        CREATE TABLE api_token (
          id text PRIMARY KEY,
          sha256 text NOT NULL UNIQUE,
          name text NOT NULL,
          username text NOT NULL,
          scopes text[] NOT NULL,
          groups text[] NOT NULL DEFAULT '{}',
          environment text,
          created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
          expires_at timestamptz,
          revoked_at timestamptz,
          used_at timestamptz)
    """)


def _audit() -> None:
    op.execute("""
        CREATE TABLE audit (
          id bigint PRIMARY KEY,
          at timestamptz NOT NULL,
          who text NOT NULL,
          action text NOT NULL,
          subject text NOT NULL,
          outcome text NOT NULL,
          address text NOT NULL DEFAULT '',
          detail jsonb NOT NULL DEFAULT '{}',
          previous text NOT NULL,
          sha256 text NOT NULL)
    """)
    op.execute("CREATE INDEX ON audit (at)")
    op.execute("CREATE INDEX ON audit (subject)")
    op.execute("CREATE TABLE audit_setting (keep interval NOT NULL, one boolean PRIMARY KEY DEFAULT true CHECK (one))")
    op.execute("INSERT INTO audit_setting (keep) VALUES ('400 days')")
    # One writer after the other: a chain has an order. The lock is held to the end of the transaction, so entries are
    # written last.
    op.execute("""
        CREATE FUNCTION audit_chain() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
          last record;
          -- Found by the trigger's own table: the caller's search_path does not count.
          own text := quote_ident(TG_TABLE_SCHEMA) || '.audit';
        BEGIN
          PERFORM pg_advisory_xact_lock(hashtextextended(own, 0));
          EXECUTE 'SELECT id, sha256 FROM ' || own || ' ORDER BY id DESC LIMIT 1' INTO last;
          NEW.id := coalesce(last.id, 0) + 1;
          NEW.at := clock_timestamp();
          NEW.previous := coalesce(last.sha256, '');
          NEW.sha256 := encode(sha256(convert_to(jsonb_build_array(
            NEW.id, to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), NEW.who, NEW.action,
            NEW.subject, NEW.outcome, NEW.address, NEW.detail, NEW.previous)::text, 'UTF8')), 'hex');
          RETURN NEW;
        END $$
    """)
    op.execute("CREATE TRIGGER audit_chain BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_chain()")
    op.execute("""
        CREATE FUNCTION audit_keep() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
          kept interval;
        BEGIN
          IF TG_OP = 'DELETE' THEN
            EXECUTE 'SELECT keep FROM ' || quote_ident(TG_TABLE_SCHEMA) || '.audit_setting' INTO kept;
            IF OLD.at < clock_timestamp() - kept THEN
              RETURN OLD;
            END IF;
          END IF;
          RAISE EXCEPTION 'the audit log is append-only: % of entry % is refused', TG_OP, OLD.id
            USING HINT = 'entries that are older than audit_keep_days may be deleted';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER audit_keep BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_keep()
    """)
    op.execute("""
        CREATE FUNCTION audit_whole() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          RAISE EXCEPTION 'the audit log is append-only: TRUNCATE is refused';
        END $$
    """)
    op.execute("CREATE TRIGGER audit_whole BEFORE TRUNCATE ON audit EXECUTE FUNCTION audit_whole()")


def downgrade() -> None:
    raise NotImplementedError("the catalog is only ever migrated forward; restore a backup to go back")
