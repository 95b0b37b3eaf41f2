COPY (
    WITH version AS (
        SELECT id, row_number() OVER (PARTITION BY base_id ORDER BY updated_at DESC) AS age
        FROM knowledge_base.source_run_page
    )
    SELECT
        id,
        base_id,
        source_base_id,
        run_id,
        url,
        url LIKE '%%.pdf' AS is_document,
        http_status,
        title,
        cleaned_text,
        error_message,
        fetched_at,
        updated_at
    FROM knowledge_base.source_run_page
    WHERE updated_at < %(export_boundary)s
      AND id IN (SELECT version.id FROM version WHERE version.age > 1)
) TO STDOUT WITH CSV HEADER
