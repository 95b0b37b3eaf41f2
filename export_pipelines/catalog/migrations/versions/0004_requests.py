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
        CREATE FUNCTION audit_chain() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
    _audit_keeping()


def _audit_keeping() -> None:
    """Nothing is ever changed. What is old enough may go, from the beginning only, and its going is an entry, so that
    the chain begins where that says. The newest entry stays."""
    op.execute("""
        CREATE FUNCTION audit_keep() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
            USING HINT = 'entries that are older than audit_keep_days may be deleted',
              ERRCODE = 'insufficient_privilege';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER audit_keep BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_keep()
    """)
    op.execute("""
        CREATE FUNCTION audit_whole() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
          RAISE EXCEPTION 'the audit log is append-only: TRUNCATE is refused' USING ERRCODE = 'insufficient_privilege';
        END $$
    """)
    op.execute("CREATE TRIGGER audit_whole BEFORE TRUNCATE ON audit EXECUTE FUNCTION audit_whole()")
    op.execute("""
        CREATE FUNCTION audit_pruned() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
          gone record;
          first bigint;
          own text := quote_ident(TG_TABLE_SCHEMA) || '.audit';
        BEGIN
          SELECT id, sha256, (SELECT count(*) FROM deleted) AS entries INTO gone FROM deleted ORDER BY id DESC LIMIT 1;
          IF gone.id IS NULL THEN
            RETURN NULL;
          END IF;
          EXECUTE 'SELECT min(id) FROM ' || own INTO first;
          IF first IS NULL OR first <= gone.id THEN
            RAISE EXCEPTION 'the audit log is append-only: only its oldest entries may go, and not all'
              USING ERRCODE = 'insufficient_privilege';
          END IF;
          EXECUTE 'INSERT INTO ' || own || ' (who, action, subject, outcome, detail) VALUES ($1, $2, $3, $4, $5)'
            USING 'system', 'audit.pruned', 'audit', 'ok', jsonb_build_object(
              'through', gone.id, 'sha256', gone.sha256, 'entries', gone.entries, 'role', session_user);
          RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER audit_pruned AFTER DELETE ON audit REFERENCING OLD TABLE AS deleted
        FOR EACH STATEMENT EXECUTE FUNCTION audit_pruned()
    """)
    op.execute("""
        CREATE FUNCTION audit_kept() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
        BEGIN
          IF TG_OP = 'DELETE' THEN
            RAISE EXCEPTION 'how long the audit log is kept is always set' USING ERRCODE = 'insufficient_privilege';
          END IF;
          EXECUTE 'INSERT INTO ' || quote_ident(TG_TABLE_SCHEMA) || '.audit (who, action, subject, outcome, detail) '
            'VALUES ($1, $2, $3, $4, $5)'
            USING 'system', 'audit.keep', 'audit', 'ok', jsonb_build_object(
              'from', OLD.keep::text, 'to', NEW.keep::text, 'role', session_user);
          RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER audit_kept AFTER UPDATE OR DELETE ON audit_setting FOR EACH ROW EXECUTE FUNCTION audit_kept()
    """)
    schema = op.get_bind().dialect.identifier_preparer.quote(
        op.get_bind().exec_driver_sql("SELECT current_schema()").scalar_one()
    )
    # These two are all that a service without further rights can do about keeping: raise it, and drop what is too old.
    op.execute(f"""
        CREATE FUNCTION audit_set_keep(days integer) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, {schema}, pg_temp AS $$
        DECLARE
          kept interval := (SELECT keep FROM audit_setting);
          wanted interval := make_interval(days => days);
        BEGIN
          IF days < 1 THEN
            RAISE EXCEPTION 'the audit log is kept for a day at least';
          END IF;
          IF wanted < kept AND NOT pg_has_role(session_user, current_user, 'MEMBER') THEN
            RAISE EXCEPTION 'only the owner of the audit log may keep it for less than %', kept
              USING ERRCODE = 'insufficient_privilege';
          END IF;
          UPDATE audit_setting SET keep = wanted WHERE keep <> wanted;
          RETURN FOUND;
        END $$
    """)
    op.execute(f"""
        CREATE FUNCTION audit_prune() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, {schema}, pg_temp AS $$
        DECLARE
          gone bigint;
        BEGIN
          DELETE FROM audit WHERE id < (
            SELECT coalesce(min(id) FILTER (WHERE at >= clock_timestamp() - (SELECT keep FROM audit_setting)), max(id))
            FROM audit);
          GET DIAGNOSTICS gone = ROW_COUNT;
          RETURN gone;
        END $$
    """)
    for function in ("audit_set_keep(integer)", "audit_prune()"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")


def downgrade() -> None:
    raise NotImplementedError("the catalog is only ever migrated forward; restore a backup to go back")
