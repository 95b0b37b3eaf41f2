-- The same condition as in select.sql.
DELETE FROM knowledge_base.source_file
WHERE updated_at < %(export_boundary)s
  AND (base_id, updated_at) NOT IN (
      SELECT base_id, max(updated_at)
      FROM knowledge_base.source_file
      GROUP BY base_id
  );
