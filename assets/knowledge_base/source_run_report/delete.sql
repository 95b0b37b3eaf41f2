DELETE FROM knowledge_base.source_run_report AS report
USING (
    SELECT base_id, max(updated_at) AS updated_at
    FROM knowledge_base.source_run_report
    GROUP BY base_id
) AS newest
WHERE newest.base_id = report.base_id
  AND report.updated_at < newest.updated_at
  AND report.updated_at < %(export_boundary)s
