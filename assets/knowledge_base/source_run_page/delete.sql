WITH version AS (
    SELECT id, row_number() OVER (PARTITION BY base_id ORDER BY updated_at DESC) AS age
    FROM knowledge_base.source_run_page
)
DELETE FROM knowledge_base.source_run_page
WHERE updated_at < %(export_boundary)s
  AND id IN (SELECT version.id FROM version WHERE version.age > 1)
